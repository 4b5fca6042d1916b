"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { columns, rows } = data.atlas;
  let chosen = -1, current = -1;

  // Thumbnails are parts of one picture.
  function show(element, image) {
    const facts = data.images[image];
    const place = facts ? facts[3] : -1;
    element.hidden = place < 0;
    if (place < 0) return;
    const column = place % columns, row = Math.floor(place / columns);
    const share = (index, count) => count > 1 ? 100 * index / (count - 1) : 0;
    element.style.backgroundPosition = `${share(column, columns)}% ${share(row, rows)}%`;
    element.setAttribute("aria-label", describe(image));
    element.title = describe(image);
  }

  function describe(image) {
    const [label, prediction, confidence] = data.images[image];
    const right = label === prediction ? "rightly" : "wrongly";
    return `image ${image}: ${data.classes[label]}, ${right} predicted ` +
      `${data.classes[prediction]} (${(100 * confidence).toFixed(1)} %)`;
  }

  for (const element of document.querySelectorAll(".picture[data-image]")) {
    show(element, element.dataset.image);
  }

  // Pressing a heading sorts its table.
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => Number(row.cells[column].dataset.order);
      const sorted = [...body.rows].sort((a, b) => up ? key(a) - key(b) : key(b) - key(a));
      body.append(...sorted);
    }));
  }

  // Choosing a class marks it everywhere.
  function choose(number) {
    chosen = number;
    for (const button of document.querySelectorAll(".choose button")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.class) === number));
    }
    for (const row of document.querySelectorAll("tr[data-class]")) {
      row.classList.toggle("chosen", Number(row.dataset.class) === number);
    }
    for (const details of document.querySelectorAll("details.class-gates")) {
      details.open = Number(details.dataset.class) === number;
    }
    draw();
  }
  for (const button of document.querySelectorAll(".choose button")) {
    button.addEventListener("click", () => choose(Number(button.dataset.class)));
  }

  // The picture of the gate vectors.
  const canvas = document.getElementById("points");
  const card = document.getElementById("card");
  const MARGIN = 12;
  function place(point) {
    return [MARGIN + point[1] * (canvas.clientWidth - 2 * MARGIN),
      MARGIN + (1 - point[2]) * (canvas.clientHeight - 2 * MARGIN)];
  }
  const SHAPES = {
    "o": (c, x, y, r) => c.arc(x, y, r, 0, 2 * Math.PI),
    "s": (c, x, y, r) => c.rect(x - r, y - r, 2 * r, 2 * r),
    "^": (c, x, y, r) => polygon(c, [[x, y - 1.3 * r], [x + 1.2 * r, y + r], [x - 1.2 * r, y + r]]),
    "v": (c, x, y, r) => polygon(c, [[x, y + 1.3 * r], [x + 1.2 * r, y - r], [x - 1.2 * r, y - r]]),
    "D": (c, x, y, r) => polygon(c, [[x, y - 1.4 * r], [x + 1.4 * r, y], [x, y + 1.4 * r], [x - 1.4 * r, y]]),
  };
  function polygon(context, corners) {
    context.moveTo(...corners[0]);
    corners.slice(1).forEach((corner) => context.lineTo(...corner));
    context.closePath();
  }
  function draw() {
    if (!canvas) return;
    const scale = window.devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * scale;
    canvas.height = canvas.clientHeight * scale;
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    context.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
    const radius = data.points.length > 3000 ? 1.8 : 3;
    const paint = (point, alpha, size) => {
      const [colour, shape] = data.styles[data.images[point[0]][0]];
      context.globalAlpha = alpha;
      context.fillStyle = colour;
      context.beginPath();
      SHAPES[shape](context, ...place(point), size);
      context.fill();
    };
    const inside = (point) => chosen < 0 || data.images[point[0]][0] === chosen;
    data.points.filter((point) => !inside(point)).forEach((point) => paint(point, 0.12, radius));
    data.points.filter(inside).forEach((point) => paint(point, 0.75, radius));
    if (current >= 0) {
      context.globalAlpha = 1;
      context.lineWidth = 2;
      context.strokeStyle = "#000";
      context.beginPath();
      context.arc(...place(data.points[current]), 9, 0, 2 * Math.PI);
      context.stroke();
    }
  }
  function look(index) {
    if (index === current) return;
    current = index;
    const image = data.points[index][0];
    show(card.querySelector(".picture"), image);
    card.lastElementChild.textContent = describe(image);
    draw();
  }
  function nearest(x, y, allowed) {
    let best = -1, least = Infinity;
    data.points.forEach((point, index) => {
      const [a, b] = place(point);
      const distance = (a - x) ** 2 + (b - y) ** 2;
      if (distance < least && allowed(a, b, index)) { best = index; least = distance; }
    });
    return [best, least];
  }
  if (canvas) {
    const point = (event) => {
      const box = canvas.getBoundingClientRect();
      const [index, distance] = nearest(event.clientX - box.left, event.clientY - box.top, () => true);
      if (index >= 0 && distance < 400) look(index);
    };
    canvas.addEventListener("pointermove", point);
    canvas.addEventListener("pointerdown", point);
    const WAYS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    canvas.addEventListener("keydown", (event) => {
      const way = WAYS[event.key];
      if (!way) return;
      event.preventDefault();
      if (current < 0) { look(0); return; }
      const [x, y] = place(data.points[current]);
      // The nearest image that lies more in this direction than to the sides.
      const [index] = nearest(x, y, (a, b, other) => {
        const along = (a - x) * way[0] + (b - y) * way[1];
        const across = Math.abs((a - x) * way[1]) + Math.abs((b - y) * way[0]);
        return other !== current && along > 0 && along >= across;
      });
      if (index >= 0) look(index);
    });
    window.addEventListener("resize", draw);
    draw();
  }
})();
