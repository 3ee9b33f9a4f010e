// The viewer: bicubic below, the network's tiles above it, clipped at the line between the two.
// The first paint, #first, came with the page; the bicubic tiles take its place, and sharp ones cover
// those as they come.
"use strict";

const $ = (id) => document.getElementById(id);
let shown = null; // {name, width, height, zoom, bicubic, ours, failed}: the picture on the screen
let split = 0.5; // where the line is, as a part of the width

const viewer = OpenSeadragon({
  element: $("viewer"),
  drawer: "canvas",
  showNavigationControl: false,
  maxZoomPixelRatio: 2,
  minZoomImageRatio: 0.6,
  visibilityRatio: 0.3,
  animationTime: 0.5,
  gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
  // The server makes sharp tiles one after the other: a short line follows the eye better.
  imageLoaderLimit: 6,
  timeout: 600000,
  // A busy server sends some away, and asks them to come back after that time.
  tileRetryMax: 5,
  tileRetryDelay: 5000,
});

// Tiles of one quality on the grid of the picture enlarged `zoom` times; levels are powers of two.
// The service's grid is a multiple of every level above 100 %, so that these tiles are exact.
function tileSource(picture, zoom, tile, quality, smallest) {
  const width = picture.width * zoom;
  const height = picture.height * zoom;
  const maxLevel = Math.ceil(Math.log2(Math.max(width, height)));
  const unit = Math.log2(zoom);
  return {
    width, height, tileSize: tile, maxLevel,
    minLevel: smallest === null ? 0 : maxLevel - unit + smallest,
    getTileUrl(level, x, y) {
      const step = 2 ** (maxLevel - level);
      const left = x * tile * step;
      const top = y * tile * step;
      const w = Math.min(tile * step, width - left);
      const h = Math.min(tile * step, height - top);
      const size = `${Math.ceil(w / step)},${Math.ceil(h / step)}`;
      return `iiif/${picture.name}@${zoom}/${left},${top},${w},${h}/${size}/0/${quality}.png`;
    },
  };
}

function addImage(source) {
  return new Promise((resolve, reject) => viewer.addTiledImage({
    tileSource: source, x: 0, y: 0, width: 1,
    success: (event) => resolve(event.item), error: (event) => reject(new Error(event.message)),
  }));
}

// One after the other: else the tiles of two pictures would lie above each other.
let showing = Promise.resolve();

function show(picture, all, view) {
  const done = showing.then(() => change(picture, all, view));
  showing = done.catch(() => {});
  return done;
}

async function change(picture, all, view) {
  viewer.world.removeAll();
  shown = null;
  note = "";
  // At and below 100 % both qualities are the same reduction: the network's levels begin at 2.
  const bicubic = await addImage(tileSource(picture, all.zoom, all.tile, "bicubic", null));
  const ours = await addImage(tileSource(picture, all.zoom, all.tile, "default", 1));
  shown = { ...picture, zoom: all.zoom, maxArea: all.maxArea, bicubic, ours };
  ours.addHandler("fully-loaded-change", () => { clip(); describe(); });
  document.body.classList.toggle("alpha", picture.alpha);
  $("picture").value = picture.name;
  document.title = `${picture.name} - diinn_fast`;
  if (view) goTo(view); else viewer.viewport.goHome(true);
  if (view || picture !== all.pictures[0]) leaveFirst();
  else bicubic.addOnceHandler("fully-loaded-change", leaveFirst);
  clip();
  describe();
}

function leaveFirst() {
  $("first")?.remove();
}

// -- scale: screen pixels per pixel of the LR picture ---------------------------------------------

function scale() {
  return shown.bicubic.viewportToImageZoom(viewer.viewport.getZoom(true)) * shown.zoom *
    OpenSeadragon.pixelDensityRatio;
}

// Whatever a link says: near the picture, at a scale that there is.
function goTo([x, y, wanted]) {
  const near = (value, side) => shown.zoom * Math.min(Math.max(value, -side), 2 * side);
  const most = 2 * shown.zoom;
  const zoom = shown.bicubic.imageToViewportZoom(
    Math.min(Math.max(wanted, 1e-6), most) / shown.zoom / OpenSeadragon.pixelDensityRatio);
  viewer.viewport.zoomTo(zoom, null, true);
  viewer.viewport.panTo(shown.bicubic.imageToViewportCoordinates(
    near(x, shown.width), near(y, shown.height)), true);
  viewer.viewport.applyConstraints(true);
}

// -- the line between the two ---------------------------------------------------------------------

function clip() {
  if (!shown) return;
  const x = split * viewer.container.clientWidth;
  const edge = shown.ours.viewerElementToImageCoordinates(new OpenSeadragon.Point(x, 0)).x;
  const whole = shown.width * shown.zoom;
  const line = Math.min(Math.max(edge, 0), whole);
  // At and below 100 % both are the same reduction: the network is left out.
  const ours = line > 0 && scale() > 1;
  shown.ours.setOpacity(ours ? 1 : 0);
  if (ours) cut(shown.ours, 0, line);
  // What lies below shows through a picture with alpha: it goes once all above it is there.
  if (shown.alpha) cut(shown.bicubic, ours && shown.ours.getFullyLoaded() ? line : 0, whole);
  $("split").style.left = `${100 * split}%`;
  $("split").setAttribute("aria-valuenow", Math.round(100 * split));
}

// Shows an image from one column to another. Every setting of a clip draws the viewer again, and this
// is asked for after each drawing: only a change may set it.
function cut(image, left, right) {
  const width = Math.max(right - left, 1);
  const now = image.getClip();
  if (now && now.x === left && now.width === width) return;
  image.setClip(new OpenSeadragon.Rect(left, 0, width, shown.height * shown.zoom));
}

function moveSplit(value) {
  split = Math.min(1, Math.max(0, value));
  clip();
  remember();
}

$("split").addEventListener("pointerdown", (event) => {
  $("split").setPointerCapture(event.pointerId);
  event.preventDefault();
});
$("split").addEventListener("pointermove", (event) => {
  if (!$("split").hasPointerCapture(event.pointerId)) return;
  const box = viewer.container.getBoundingClientRect();
  moveSplit((event.clientX - box.left) / box.width);
});
$("split").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -0.02, ArrowRight: 0.02, Home: -1, End: 1 }[event.key];
  if (step) moveSplit(split + step);
});

// The wheel zooms on the line, too.
$("split").addEventListener("wheel", (event) => {
  event.preventDefault();
  viewer.canvas.dispatchEvent(new WheelEvent("wheel", event));
});

// -- what is said about the view ------------------------------------------------------------------

let note = ""; // stays until the view changes

function say(text) {
  note = text;
  $("state").textContent = text;
}

function describe() {
  if (!shown) return;
  const now = scale();
  $("scale").textContent = `\u00d7${now < 10 ? now.toFixed(2) : now.toFixed(1)}`;
  const sharp = shown.ours.getFullyLoaded() || shown.ours.getOpacity() === 0;
  $("state").textContent = shown.failed ? "parts are missing: reload the page" : note ||
    (now <= 1 ? "reduced" : sharp ? "sharp" : "sharpening \u2026");
  const part = visible(now);
  $("download").href = part.url;
  $("download").title = `What you see, by the network, as PNG of ${part.size.replace(",", " x ")}`;
  $("download").download = `${shown.name}-x${part.scale.toFixed(1)}.png`;
}

// The visible part by the network, as wide as wanted, at most what one answer may have; by default
// at the screen's scale.
function visible(now) {
  const width = shown.width * shown.zoom;
  const height = shown.height * shown.zoom;
  const seen = shown.bicubic.viewportToImageRectangle(viewer.viewport.getBounds(true));
  const left = Math.round(Math.min(Math.max(seen.x, 0), width - 1));
  const top = Math.round(Math.min(Math.max(seen.y, 0), height - 1));
  const w = Math.max(1, Math.round(Math.min(seen.x + seen.width, width)) - left);
  const h = Math.max(1, Math.round(Math.min(seen.y + seen.height, height)) - top);
  const wanted = Number($("width").querySelector("input").value) / w || now / shown.zoom;
  const fits = Math.min(1, wanted, Math.sqrt(shown.maxArea / (w * h)));
  const size = `${Math.max(1, Math.floor(w * fits))},${Math.max(1, Math.floor(h * fits))}`;
  const path = `${shown.name}@${shown.zoom}/${left},${top},${w},${h}/${size}/0/default.png`;
  return { url: `iiif/${path}`, size, scale: fits * shown.zoom };
}

// The link to a view: #name,x,y,scale,split with x and y the middle in pixels of the picture.
function remember() {
  if (!shown) return;
  const middle = shown.bicubic.viewportToImageCoordinates(viewer.viewport.getCenter(true));
  const place = [middle.x / shown.zoom, middle.y / shown.zoom, scale()];
  const words = [shown.name, ...place.map((v) => v.toFixed(2)), split.toFixed(2)];
  history.replaceState(null, "", `#${words.join(",")}`);
}

function linked(hash) {
  // Names need no escapes; some programs that links are sent by make them of commas.
  const words = hash.slice(1).replace(/%2c/gi, ",").split(",");
  const numbers = words.slice(1).map(Number);
  const whole = numbers.length === 4 && numbers.every(Number.isFinite) && numbers[2] > 0;
  if (whole) numbers[3] = Math.min(1, Math.max(0, numbers[3]));
  return { name: words[0], view: whole && numbers };
}

// -- start ----------------------------------------------------------------------------------------

viewer.addHandler("viewport-change", clip);
viewer.addHandler("update-viewport", () => { clip(); describe(); });
viewer.addHandler("animation-start", () => { note = ""; });
viewer.addHandler("animation-finish", remember);
viewer.addHandler("resize", clip);
viewer.addHandler("tile-load-failed", (event) => {
  if (!shown || !event.maxReached) return;
  shown.failed = true;
  describe();
});
$("in").onclick = () => zoom(2);
$("out").onclick = () => zoom(0.5);
$("whole").onclick = () => viewer.viewport.goHome();
$("link").onclick = async () => {
  remember();
  try {
    await navigator.clipboard.writeText(location.href);
    say("link copied");
  } catch { // not allowed, or a page that did not come from this machine
    say("copy the link from the address bar");
  }
};

function zoom(factor) {
  viewer.viewport.zoomBy(factor);
  viewer.viewport.applyConstraints();
}

function pan(x, y) {
  const step = new OpenSeadragon.Point(80 * x, 80 * y);
  viewer.viewport.panBy(viewer.viewport.deltaPointsFromPixels(step));
  viewer.viewport.applyConstraints();
}

const keys = {
  "+": () => zoom(2), "=": () => zoom(2), "-": () => zoom(0.5),
  "0": () => viewer.viewport.goHome(),
  ArrowLeft: () => pan(-1, 0), ArrowRight: () => pan(1, 0),
  ArrowUp: () => pan(0, -1), ArrowDown: () => pan(0, 1),
};

// Wherever the focus is, but for what has keys of its own.
window.addEventListener("keydown", (event) => {
  const taken = event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey;
  if (taken || !keys[event.key] || event.target.closest("select, input, #split")) return;
  event.preventDefault();
  keys[event.key]();
});
// The viewer's own keys would turn the picture and mirror it, but not what is said of it.
viewer.addHandler("canvas-key", (event) => {
  event.preventDefaultAction = /^[rf]$/i.test(event.originalEvent.key);
});

const all = JSON.parse($("facts").textContent); // what there is to see, and the limits

function find(name) {
  return all.pictures.find((picture) => picture.name === name);
}

// What the event says: the address may have been written over since, with the view of before.
function follow(event) {
  const { name, view } = linked(new URL(event.newURL).hash);
  if (!find(name) || !view) return;
  split = view[3];
  show(find(name), all, view);
}

function list(pictures) {
  all.pictures = pictures;
  $("picture").replaceChildren(...pictures.map((picture) => new Option(picture.name)));
}

async function start() {
  list(all.pictures);
  $("picture").onchange = () => show(find($("picture").value), all);
  $("open").hidden = $("drops").hidden = !all.drops;
  const { name, view } = linked(location.hash);
  if (view) split = view[3];
  await show(find(name) || all.pictures[0], all, find(name) && view);
  window.addEventListener("hashchange", follow);
}

// -- a picture of one's own -----------------------------------------------------------------------

async function take(file) {
  if (!all.drops) return;
  if (!file) {
    say("drop a file: download what lies on other pages first");
  } else if (file.size > all.maxFile) {
    say(all.tooLarge); // a browser would not show the answer to what was not sent to its end
  } else {
    say("reading \u2026");
    await send(file).catch(() => say("the server cannot be reached"));
  }
}

async function send(file) {
  const title = file.name.replace(/\.[^.]*$/, "");
  const answer = await fetch(`pictures?title=${encodeURIComponent(title)}`,
    { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file });
  if (!answer.ok) {
    say(await answer.text());
    return;
  }
  const picture = await answer.json();
  // An older one may have made room for it.
  list((await (await fetch("pictures.json")).json()).pictures);
  await show(picture, all);
  remember();
}

window.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.toggle("dropping", Boolean(all.drops));
});
window.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
window.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  take(event.dataTransfer.files[0]);
});
$("open").querySelector("input").onchange = async (event) => {
  await take(event.target.files[0]);
  event.target.value = ""; // the same file may be chosen again
};
$("open").onkeydown = (event) => {
  if (event.key === "Enter") $("open").querySelector("input").click();
};
$("width").oninput = describe;

start().catch((error) => say(`cannot show: ${error.message}`));
