// Code cells, and tables of up to nine columns, that have to be scrolled sideways to be seen whole.
() => {
    const cut = (e) => e.scrollWidth > e.clientWidth + 1;
    const wrong = [];
    for (const e of document.querySelectorAll("div.cell_input div.highlight pre"))
        if (cut(e)) {
            const lines = e.textContent.split("\n");
            const longest = lines.reduce((a, b) => (b.length > a.length ? b : a));
            wrong.push(`code is cut: ${longest.length} characters: ${longest.slice(0, 60)}`);
        }
    const wide = (e) => e.querySelectorAll("thead th").length > 9; // these may scroll
    for (const e of document.querySelectorAll(".pst-scrollable-table-container"))
        if (cut(e) && !wide(e)) wrong.push(`table is cut: ${e.textContent.trim().slice(0, 60)}`);
    return wrong;
}
