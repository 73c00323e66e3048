// What is wrong with the page that is shown, as sentences.
async () => {
    if (window.MathJax) await MathJax.startup.promise;
    const wrong = [];
    for (const e of document.querySelectorAll("mjx-merror, [data-mjx-error]"))
        wrong.push(`formula: ${e.textContent}`);
    for (const e of document.querySelectorAll(".math"))
        if (!e.querySelector("mjx-container")) wrong.push(`not rendered: ${e.textContent}`);
    for (const e of document.images) {
        e.loading = "eager";
        await e.decode().catch(() => wrong.push(`image: ${e.src}`));
    }
    return wrong;
}
