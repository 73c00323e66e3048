// A filter W and a similarity M of two taps, with handles: drag them, see the response W^T M X
// to every patch X. Nothing is fetched; every <div class="nsl-playground"> of the page is filled.
(() => {
  const SIZE = 340; // of the picture, in pixels of the page
  const CELLS = 80; // of the field of responses, in each direction
  const REACH = 2; // the picture shows -2..2 in both directions
  const PER_UNIT = CELLS / (2 * REACH);

  const CANVAS_STYLE =
    `width: 100%; max-width: ${SIZE}px; touch-action: none; cursor: grab; ` +
    'background: white; display: block';
  const TEXT_STYLE = 'display: block; margin-top: 4px; font-family: monospace; white-space: pre';

  // The columns of M, given the two handles.
  const KINDS = {
    'inner product': () => [[1, 0], [0, 1]],
    'diagonal (DNS)': ([a, b]) => [[a[0], 0], [0, b[1]]],
    'free (UNS)': (columns) => columns,
  };

  const dot = (a, b) => a[0] * b[0] + a[1] * b[1];
  const clip = (v, most) => Math.max(-most, Math.min(most, v));
  const toScreen = ([x, y]) => [
    ((x + REACH) * SIZE) / (2 * REACH),
    ((REACH - y) * SIZE) / (2 * REACH),
  ];
  const number = (v) => (v < 0 ? '' : ' ') + v.toFixed(2);

  // An element with these properties and styles, inside its parent.
  function make(tag, parent, properties = {}, style = '') {
    const element = Object.assign(document.createElement(tag), properties);
    element.style.cssText = style;
    parent?.append(element);
    return element;
  }

  // Red where the response is positive, blue where it is negative, paler near zero.
  function color(response) {
    const t = Math.min(1, Math.abs(response) / 3);
    const pale = 255 * (1 - 0.75 * t);
    if (response > 0) return [255 - 60 * t, pale, pale, 255];
    return [pale, pale + 40 * t, 255 - 50 * t, 255];
  }

  // One pixel for each patch X; V = M^T W.
  function drawField(field, V) {
    const pen = field.getContext('2d');
    const image = pen.createImageData(CELLS, CELLS);
    for (let i = 0; i < CELLS * CELLS; i++) {
      const column = i % CELLS;
      const row = Math.floor(i / CELLS);
      const X = [(column + 0.5) / PER_UNIT - REACH, REACH - (row + 0.5) / PER_UNIT];
      image.data.set(color(dot(V, X)), 4 * i);
    }
    pen.putImageData(image, 0, 0);
  }

  function drawArrow(pen, tip, shade) {
    const [x0, y0] = toScreen([0, 0]);
    const [x, y] = toScreen(tip);
    const turn = Math.atan2(y - y0, x - x0);
    pen.strokeStyle = pen.fillStyle = shade;
    pen.lineWidth = 3;
    pen.beginPath();
    pen.moveTo(x0, y0);
    pen.lineTo(x, y);
    pen.stroke();
    pen.beginPath();
    pen.moveTo(x, y);
    for (const side of [2.6, -2.6]) {
      pen.lineTo(x + 11 * Math.cos(turn + side), y + 11 * Math.sin(turn + side));
    }
    pen.fill();
  }

  // A handle is W, black, or column 0 or 1 of M, white with its name beside it.
  function drawHandle(pen, name, tip) {
    const [x, y] = toScreen(tip);
    pen.beginPath();
    pen.arc(x, y, name === 'W' ? 8 : 6, 0, 7);
    pen.fillStyle = name === 'W' ? 'black' : 'white';
    pen.fill();
    pen.strokeStyle = 'black';
    pen.lineWidth = 1.5;
    pen.stroke();
    if (name === 'W') return;
    pen.fillStyle = 'black';
    pen.font = '11px sans-serif';
    pen.fillText(name === 0 ? 'M e₁' : 'M e₂', x + 9, y - 6);
  }

  function start(box) {
    box.dataset.ready = 'yes';
    box.textContent = '';
    const buttons = make('div', box, {}, 'margin-bottom: 6px');
    const canvas = make('canvas', box, {}, CANVAS_STYLE);
    canvas.setAttribute('role', 'img');
    canvas.setAttribute('aria-label', 'response of a filter to every patch');
    const text = make('output', box, {}, TEXT_STYLE);
    const scale = window.devicePixelRatio || 1;
    canvas.width = canvas.height = SIZE * scale;
    const pen = canvas.getContext('2d');
    const field = make('canvas', null, { width: CELLS, height: CELLS });

    const state = {
      W: [1, 0.4],
      columns: [[0.3, -0.8], [1, 1.3]],
      kind: 'diagonal (DNS)',
      at: null, // where the pointer is
      held: null, // the handle that is dragged: 'W', 0 or 1
    };
    for (const kind of Object.keys(KINDS)) {
      const choose = () => {
        state.kind = kind;
        draw();
      };
      const button = { textContent: kind, type: 'button', onclick: choose };
      make('button', buttons, button, 'margin-right: 4px; font: inherit; cursor: pointer');
    }

    const M = () => KINDS[state.kind](state.columns);
    const handles = () => {
      const columns = state.kind === 'inner product' ? [] : [...M().entries()];
      return [['W', state.W], ...columns];
    };

    function draw() {
      const { W } = state;
      const [a, b] = M(); // its columns
      const V = [dot(a, W), dot(b, W)]; // M^T W
      drawField(field, V);
      pen.setTransform(scale, 0, 0, scale, 0, 0);
      pen.drawImage(field, 0, 0, SIZE, SIZE);
      drawArrow(pen, W, 'black');
      drawArrow(pen, V, '#c00');
      for (const [name, tip] of handles()) drawHandle(pen, name, tip);
      const X = state.at || [1, 1];
      text.textContent =
        `M = [${number(a[0])} ${number(b[0])}]    W = [${W.map(number)}]\n` +
        `    [${number(a[1])} ${number(b[1])}]    X = [${X.map(number)}]\n` +
        `WᵀMX = ${number(dot(V, X))}`;
      for (const button of buttons.children) {
        button.style.fontWeight = button.textContent === state.kind ? 'bold' : 'normal';
      }
    }

    // Where the pointer is, in the units of the picture.
    function place(event) {
      const r = canvas.getBoundingClientRect();
      const x = ((event.clientX - r.left) / r.width) * 2 * REACH - REACH;
      const y = REACH - ((event.clientY - r.top) / r.height) * 2 * REACH;
      return [clip(x, 1.95), clip(y, 1.95)];
    }

    canvas.onpointerdown = (event) => {
      const [x, y] = place(event);
      const near = handles()
        .map(([name, tip]) => [Math.hypot(tip[0] - x, tip[1] - y), name])
        .sort((one, other) => one[0] - other[0])[0];
      if (near[0] >= 0.3) return;
      state.held = near[1];
      canvas.setPointerCapture(event.pointerId);
      event.preventDefault();
    };
    canvas.onpointermove = (event) => {
      const at = (state.at = place(event));
      const { held, columns } = state;
      if (held === 'W') state.W = at;
      else if (held !== null && state.kind === 'free (UNS)') columns[held] = at;
      else if (held !== null) columns[held][held] = at[held]; // only the diagonal moves
      draw();
    };
    canvas.onpointerup = canvas.onpointercancel = () => {
      state.held = null;
    };
    draw();
  }

  // A notebook may run a script before it shows the output that the script belongs to.
  let tries = 0;
  (function find() {
    const boxes = document.querySelectorAll('.nsl-playground:not([data-ready])');
    boxes.forEach(start);
    if (!boxes.length && tries++ < 200) setTimeout(find, 50);
  })();
})();
