"use strict";
// The views that turn, one for each block of environments. Without WebGL, only the pictures of the galleries remain; they
// show the same.
function view(block, scenes) {
  const stage = block.querySelector(".stage");
  const place = stage.querySelector(".canvas");
  const picks = [...block.querySelectorAll(".pick")];
  const say = (text) => {
    const remark = document.createElement("p");
    remark.className = "remark";
    remark.textContent = text;
    block.prepend(remark);
    picks.forEach((pick) => { pick.disabled = true; });
  };

  const probe = document.createElement("canvas");
  if (!(probe.getContext("webgl2") || probe.getContext("webgl"))) {
    say("This browser has no WebGL, so the environments are drawn from one side only.");
    return;
  }
  stage.hidden = false;
  let viewer;
  try {
    viewer = $3Dmol.createViewer(place, { backgroundAlpha: 0, antialias: true });
    if (!viewer) throw new Error("no viewer");
  } catch (error) {
    stage.hidden = true;
    say("The view that turns cannot be shown here, so the environments are drawn from one side only.");
    return;
  }
  // Without Ctrl, the wheel scrolls the page, as everywhere else.
  place.addEventListener("wheel", (event) => { if (!event.ctrlKey) event.stopPropagation(); }, { capture: true });

  let shown = 0;
  const textOf = (atom) => {
    const { value, id, distance } = atom.properties;
    const { name } = scenes[shown];
    const known = value === null ? `${name} unknown` : `${name} = ${Number(value.toPrecision(5))}`;
    return `${atom.elem} ${id}: ${known}` + (distance > 0 ? `, at ${distance.toFixed(2)} Å` : "");
  };
  let label = null;
  const unlabel = () => { if (label) viewer.removeLabel(label); label = null; };

  function show(which) {
    const { atoms, bonds } = scenes[which];
    const linked = atoms.map(() => []);
    for (const [i, j] of bonds) { linked[i].push(j); linked[j].push(i); }
    viewer.removeAllModels();
    viewer.removeAllShapes();
    unlabel();
    const model = viewer.addModel();
    model.addAtoms(atoms.map((atom, i) => ({
      elem: atom.elem, x: atom.x, y: atom.y, z: atom.z, serial: i, index: i, bonds: linked[i],
      bondOrder: linked[i].map(() => 1), properties: atom,
    })));
    atoms.forEach((atom, i) => viewer.setStyle({ serial: i }, {
      sphere: { color: atom.color, radius: atom.radius },
      stick: { color: "#8A94A0", radius: 0.07 },
    }));
    viewer.setHoverable({}, true, (atom) => {
      unlabel();
      label = viewer.addLabel(textOf(atom), {
        position: atom, fontSize: 13, fontColor: "white", backgroundColor: "#1b2530", backgroundOpacity: 1, inFront: true,
      });
    }, unlabel);
    viewer.setView([0, 0, 0, 0, 0, 0, 0, 1]);
    viewer.zoomTo();
    viewer.rotate(-70, "x");
    viewer.rotate(25, "y");
    viewer.zoom(Math.min(1, 0.8 * place.clientWidth / place.clientHeight));
    viewer.render();
    picks.forEach((pick, i) => pick.setAttribute("aria-pressed", String(i === which)));
    place.setAttribute("aria-label", `${scenes[which].title}, in three dimensions`);
  }

  const turn = stage.querySelector('[data-do="turn"]');
  turn.addEventListener("click", () => {
    const on = turn.getAttribute("aria-pressed") !== "true";
    turn.setAttribute("aria-pressed", String(on));
    viewer.spin(on ? "y" : false, 0.5);
  });
  stage.querySelector('[data-do="reset"]').addEventListener("click", () => show(shown));
  picks.forEach((pick, i) => pick.addEventListener("click", () => { shown = i; show(i); }));
  new ResizeObserver(() => { viewer.resize(); }).observe(place);
  show(0);
}

(() => {
  const { scenes } = JSON.parse(document.getElementById("data").textContent);
  let first = 0;
  for (const block of document.querySelectorAll(".scenes")) {
    const end = first + block.querySelectorAll(".pick").length;
    view(block, scenes.slice(first, end));
    first = end;
  }
})();
