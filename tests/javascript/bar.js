// Scroll to the code cell that shows a widget.
() => {
    const widget = "application/vnd.jupyter.widget-view+json";
    const content = jupyterapp.shell.currentWidget.content;
    const shows = (cell) =>
        cell.type == "code" && cell.outputs.toJSON().some((o) => widget in (o.data || {}));
    const place = content.widgets.findIndex((w) => shows(w.model));
    content.scrollToItem(place, "center");
}
