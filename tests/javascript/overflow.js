// What makes a page wider than its window. What scrolls inside itself is no fault.
() => {
    const frames = [
        document.documentElement,
        document.body,
        ...document.querySelectorAll(".bd-main, .bd-article-container, .bd-article"),
    ];
    if (frames.every((e) => e.scrollWidth <= e.clientWidth + 1)) return [];
    const scrolls = (e) =>
        e &&
        !frames.includes(e) &&
        (/auto|scroll|hidden/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
    const wide = [...document.querySelectorAll("main *")].filter(
        (e) =>
            e.getBoundingClientRect().right > innerWidth &&
            !scrolls(e.parentElement) &&
            !frames.includes(e),
    );
    const shown = wide.slice(0, 3).map((e) => e.outerHTML.slice(0, 160));
    return [`wider than the window: ${shown.join(" | ")}`];
}
