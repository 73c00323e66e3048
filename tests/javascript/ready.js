// Whether the notebook at a path is open and its kernel waits.
(path) => {
    const here = window.jupyterapp?.shell?.currentWidget?.context;
    const kernel = here?.sessionContext?.session?.kernel;
    return here?.path == path && here.isReady && kernel?.status == "idle";
}
