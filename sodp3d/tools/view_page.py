"""The page of `view.py`: markup and script, with places for the title, plotly.js and the data."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>@TITLE@</title>
<style>
body { font: 14px system-ui, sans-serif; margin: 1em 2em; color: #222; }
.sliders label { display: flex; gap: 1em; margin: .4em 0; }
.sliders input { flex: 1; }
.sliders span { width: 9em; }
.plots { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; }
.plots > div { height: 400px; min-width: 0; }
#status { font-weight: 600; }
#note { color: #666; }
</style>
<script>@PLOTLY@</script>
</head>
<body>
<h1>@TITLE@</h1>
<p id="note"></p>
<div class="sliders">
<label><span>episode</span><input type="range" id="episode" min="0" value="0" step="1"></label>
<label><span>frame</span><input type="range" id="frame" min="0" value="0" step="1"></label>
</div>
<p id="status"></p>
<div class="plots"><div id="depth"></div><div id="cloud"></div><div id="actions"></div><div id="rewards"></div></div>
<script type="application/json" id="data">@DATA@</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = name => document.getElementById(name);
const episodeSlider = byId("episode"), frameSlider = byId("frame");
const margin = {l: 60, r: 10, t: 35, b: 35};
const settings = {responsive: true, displaylogo: false};

// Arrays travel as base64 of little-endian numbers.
function unpack(text, type) {
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  return new type(bytes.buffer);
}
function rows(flat, width) {
  const row = index => Array.from(flat.subarray(index * width, (index + 1) * width));
  return Array.from({length: flat.length / width}, (_, index) => row(index));
}
function column(flat, width, index) {
  return Array.from({length: flat.length / width}, (_, row) => flat[row * width + index]);
}

function drawDepth(frame) {
  const metres = rows(unpack(frame.depth, Uint16Array), data.width).map(
    row => row.map(value => value === 0 ? null : value / 1000));
  const trace = {type: "heatmap", z: metres, colorscale: "Viridis", colorbar: {title: {text: "m"}}};
  const layout = {title: {text: "depth"}, margin, yaxis: {autorange: "reversed", scaleanchor: "x"}};
  return Plotly.react("depth", [trace], layout, settings);
}
function drawCloud(frame) {
  if (!frame.cloud) {
    byId("cloud").textContent = "No point clouds yet: python data_collection/convert.py env=" + data.env;
    return;
  }
  const points = unpack(frame.cloud, Int16Array);
  const [x, y, z] = [0, 1, 2].map(axis => column(points, 3, axis).map(value => value / 1000));
  const trace = {type: "scatter3d", mode: "markers", x, y, z, marker: {size: 2, color: z, colorscale: "Viridis"}};
  // A constant uirevision keeps the viewpoint while the sliders move.
  const layout = {title: {text: "point cloud (m, world frame)"}, margin: {l: 0, r: 0, t: 35, b: 0},
                  scene: {aspectmode: "data"}, uirevision: "view"};
  return Plotly.react("cloud", [trace], layout, settings);
}
function marker(step) {
  return [{type: "line", x0: step, x1: step, yref: "paper", y0: 0, y1: 1, line: {color: "#d33", width: 1}}];
}
function drawActions(episode, step) {
  const flat = unpack(episode.actions, Float32Array);
  const traces = Array.from({length: data.actionSize}, (_, index) => ({
    y: column(flat, data.actionSize, index), name: "action " + index, mode: "lines", line: {width: 1}}));
  const layout = {title: {text: "actions"}, margin, showlegend: false, shapes: marker(step),
                  xaxis: {title: {text: "step"}}};
  return Plotly.react("actions", traces, layout, settings);
}
function drawRewards(episode, step) {
  const traces = [
    {y: Array.from(unpack(episode.rewards, Float32Array)), name: "reward", mode: "lines"},
    {y: Array.from(unpack(episode.success, Uint8Array)), name: "frames at goal", mode: "lines", yaxis: "y2"}];
  const layout = {title: {text: "reward and success"}, margin: {...margin, r: 45}, shapes: marker(step),
                  legend: {orientation: "h", y: -0.2}, xaxis: {title: {text: "step"}},
                  yaxis2: {overlaying: "y", side: "right", rangemode: "tozero"}};
  return Plotly.react("rewards", traces, layout, settings);
}

function show() {
  const episode = data.episodes[Number(episodeSlider.value)];
  frameSlider.max = episode.frames.length - 1;
  const frame = episode.frames[Number(frameSlider.value)];
  byId("status").textContent = "episode " + episode.index + ", step " + frame.step + " of " + episode.length +
    ", seed " + episode.seed + ", return " + episode.return.toPrecision(4) + ", success: " +
    (episode.successes.join(", ") || "none");
  Promise.all([drawDepth(frame), drawCloud(frame), drawActions(episode, frame.step), drawRewards(episode, frame.step)])
    .then(() => { document.body.dataset.drawn = episode.index + "/" + frame.step; });
}
// #episode=3&frame=2 in the address moves the sliders, so that a view can be linked.
function followAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  episodeSlider.value = wanted.get("episode") || 0;
  frameSlider.max = data.episodes[Number(episodeSlider.value)].frames.length - 1;
  frameSlider.value = wanted.get("frame") || 0;
  show();
}
function slide() {
  history.replaceState(null, "", "#episode=" + episodeSlider.value + "&frame=" + frameSlider.value);
  show();
}

byId("note").textContent = data.note;
episodeSlider.max = data.episodes.length - 1;
episodeSlider.addEventListener("input", slide);
frameSlider.addEventListener("input", slide);
window.addEventListener("hashchange", followAddress);
followAddress();
</script>
</body>
</html>
"""
