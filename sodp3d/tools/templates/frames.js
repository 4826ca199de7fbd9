"use strict";
// Frames of a store in plots with the ids image, depth and cloud; sliders, play button and keys choose among them.
const byId = name => document.getElementById(name);
const settings = {responsive: true, displayModeBar: false};
const margin = {l: 58, r: 14, t: 36, b: 58};
const small = {size: 12};
// Names of lines stand at the bottom of a plot, below the axis' title, on two lines where it is narrow.
const legend = {orientation: "h", yref: "container", y: 0.01, yanchor: "bottom", x: 0, font: {size: 11}};
const withLegend = {margin: {...margin, b: 96}, legend, showlegend: true};

// Plotly reads some HTML in texts; names that come from data are shown as they are.
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}
function axis(title) {
  return {title: {text: title, font: small}, tickfont: {size: 11}, automargin: true};
}
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
function percentile(sorted, share) {
  return sorted.length ? sorted[Math.round(share * (sorted.length - 1))] : 0;
}
function pixelAxes(background) {
  return {plot_bgcolor: background, margin, dragmode: false,
          xaxis: {...axis("column (px)"), constrain: "domain", showgrid: false, zeroline: false},
          yaxis: {...axis("row (px)"), autorange: "reversed", scaleanchor: "x", constrain: "domain", showgrid: false,
                  zeroline: false}};
}

function drawDepth(frame, width) {
  byId("depth").hidden = !frame.depth;
  if (!frame.depth) return null;
  const millimetres = unpack(frame.depth, Uint16Array);
  const metres = rows(millimetres, width).map(row => row.map(value => value === 0 ? null : value / 1000));
  // The colours of the videos: near is bright, the nearest and farthest hundredth are cut off, invalid is black.
  const sorted = Array.from(millimetres).filter(value => value > 0).sort((one, other) => one - other);
  const trace = {type: "heatmap", z: metres, colorscale: "Viridis", reversescale: true,
                 zmin: percentile(sorted, 0.01) / 1000, zmax: percentile(sorted, 0.99) / 1000,
                 hovertemplate: "column %{x}, row %{y}: %{z:.3f} m<extra></extra>",
                 colorbar: {title: {text: "distance (m)", side: "right", font: small}, thickness: 12}};
  return Plotly.react("depth", [trace], {title: {text: "Depth"}, ...pixelAxes("#000")}, settings);
}
function drawImage(frame) {
  byId("image").hidden = !frame.image;
  if (!frame.image) return null;
  const trace = {type: "image", source: "data:image/png;base64," + frame.image};
  return Plotly.react("image", [trace], {title: {text: "RGB"}, ...pixelAxes("#fff")}, settings);
}
function drawCloud(frame, without) {
  const place = byId("cloud");
  place.classList.toggle("message", !frame.cloud);
  if (!frame.cloud) {
    Plotly.purge(place);
    place.textContent = without;
    return null;
  }
  if (place.textContent === without) place.textContent = "";
  const points = unpack(frame.cloud, Int16Array);
  const [x, y, z] = [0, 1, 2].map(index => column(points, 3, index).map(value => value / 1000));
  const trace = {type: "scatter3d", mode: "markers", x, y, z, 
                 marker: {size: x.length < 300 ? 3.5 : 2.2, color: z, colorscale: "Viridis"},
                 hovertemplate: "%{x:.3f}, %{y:.3f}, %{z:.3f} m<extra></extra>"};
  const side = title => ({title: {text: title, font: small}, tickfont: {size: 10}, nticks: 5});
  // A constant uirevision keeps the viewpoint while the sliders move.
  const layout = {title: {text: "Point cloud, " + x.length + " points, world frame"},
                  margin: {l: 0, r: 0, t: 36, b: 8}, uirevision: "view",
                  scene: {aspectmode: "data", camera: {eye: {x: 1.6, y: 1.6, z: 1.3}}, xaxis: side("x (m)"),
                          yaxis: side("y (m)"), zaxis: side("z (m)")}};
  return Plotly.react(place, [trace], layout, settings);
}

// `drawMore(episode, frame)`: what a page draws besides, a list of promises.
function startFrames(shown, drawMore) {
  const episodeSlider = byId("episode"), frameSlider = byId("frame"), play = byId("play");
  const episodes = shown.episodes;
  let playing = false;

  function draw() {
    const episode = episodes[Number(episodeSlider.value)];
    frameSlider.max = episode.frames.length - 1;
    const frame = episode.frames[Number(frameSlider.value)];
    byId("episodeName").textContent = episode.index;
    byId("frameName").textContent = "step " + frame.step;
    byId("status").textContent = "episode " + episode.index + ", step " + frame.step + " of " + episode.length +
      ", seed " + (episode.seed ?? "not recorded") + ", return " +
      (episode.return === null ? "not recorded" : Number(episode.return).toPrecision(4)) + ", success: " +
      (episode.successes === null ? "not recorded" : episode.successes.join(", ") || "none");
    const drawn = [drawImage(frame), drawDepth(frame, shown.width), drawCloud(frame, shown.noClouds),
                   ...drawMore(episode, frame)];
    return Promise.all(drawn).then(() => { document.body.dataset.drawn = episode.index + "/" + frame.step; });
  }
  // #episode=3&frame=2 in the address moves the sliders, so that a view can be linked.
  function followAddress() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    episodeSlider.value = wanted.get("episode") || 0;
    frameSlider.max = episodes[Number(episodeSlider.value)].frames.length - 1;
    frameSlider.value = wanted.get("frame") || 0;
    return draw();
  }
  function slide() {
    history.replaceState(null, "", "#episode=" + episodeSlider.value + "&frame=" + frameSlider.value);
    return draw();
  }
  function move(slider, by) {
    slider.value = Number(slider.value) + by;  // a slider keeps its bounds by itself
    return slide();
  }
  function setPlaying(on) {
    playing = on;
    play.textContent = on ? "Pause" : "Play";
    if (on) advance();
  }
  // The next frame is due 100 ms after the last one was drawn, so that slow machines keep up.
  function advance() {
    if (!playing) return;
    const last = Number(frameSlider.value) >= Number(frameSlider.max);
    if (last) frameSlider.value = -1;
    move(frameSlider, last ? 0 : 1).then(() => setTimeout(advance, 100));
  }
  const keys = {
    ArrowLeft: () => move(frameSlider, -1), ArrowRight: () => move(frameSlider, 1),
    ArrowUp: () => move(episodeSlider, 1), ArrowDown: () => move(episodeSlider, -1),
    " ": () => setPlaying(!playing),
  };
  document.addEventListener("keydown", event => {
    const typing = event.target.closest("button, summary, input:not([type=range])");
    if (!(event.key in keys) || event.ctrlKey || event.altKey || event.metaKey || (event.key === " " && typing)) return;
    event.preventDefault();
    keys[event.key]();
  });
  episodeSlider.max = episodes.length - 1;
  episodeSlider.addEventListener("input", slide);
  frameSlider.addEventListener("input", slide);
  play.addEventListener("click", () => setPlaying(!playing));
  window.addEventListener("hashchange", followAddress);
  followAddress();
  return draw;
}
