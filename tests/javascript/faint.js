// Text that does not stand out from its ground, figures on a dark one, and how light the page is.
() => {
    const parse = (c) => (c.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
    const over = (a, b) => {
        const t = a.length > 3 ? a[3] : 1;
        return [0, 1, 2].map((i) => t * a[i] + (1 - t) * b[i]);
    };
    const back = (e) => {
        const c = parse(getComputedStyle(e).backgroundColor);
        if (c.length < 4 || c[3] == 1) return c;
        return over(c, e.parentElement ? back(e.parentElement) : [255, 255, 255]);
    };
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const light = (c) =>
        [0.2126, 0.7152, 0.0722].reduce((s, share, i) => s + share * linear(c[i] / 255), 0);
    const contrast = (a, b) => {
        const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
        return (x + 0.05) / (y + 0.05);
    };
    const options = { opacityProperty: true, visibilityProperty: true };
    const says = (e) => [...e.childNodes].some((n) => n.nodeType == 3 && n.textContent.trim());
    const wrong = [];
    for (const e of document.querySelectorAll("main *")) {
        if (!says(e) || !e.checkVisibility(options)) continue;
        const behind = back(e);
        const c = contrast(over(parse(getComputedStyle(e).color), behind), behind);
        if (c < 3) wrong.push(`contrast ${c.toFixed(1)}: ${e.outerHTML.slice(0, 100)}`);
    }
    for (const e of document.querySelectorAll(".cell_output img"))
        if (light(back(e)) < 0.7) wrong.push(`a figure on a dark ground: ${e.src}`);
    return { wrong: wrong.slice(0, 5), ground: light(back(document.body)) };
}
