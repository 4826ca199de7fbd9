const data = JSON.parse(byId("data").textContent);
const names = data.actionNames;

function shownActions() {
  return Array.from(document.querySelectorAll("#choices input:checked"), box => Number(box.value));
}
function marker(step) {
  return [{type: "line", x0: step, x1: step, yref: "paper", y0: 0, y1: 1, line: {color: "#d33", width: 1}}];
}
function drawActions(episode, step) {
  const flat = unpack(episode.actions, Float32Array);
  const traces = shownActions().map(index => ({
    y: column(flat, names.length, index), name: plain(names[index]), mode: "lines", line: {width: 1.5}}));
  const layout = {title: {text: "Actions"}, ...withLegend, shapes: marker(step), dragmode: false,
                  xaxis: axis("control step"), yaxis: axis(`action (${data.actionUnit})`)};
  return Plotly.react("actions", traces, layout, settings);
}
function drawRewards(episode, step) {
  byId("rewards").hidden = !episode.rewards && !episode.success;  // neither was recorded
  if (byId("rewards").hidden) return null;
  const traces = [
    {y: episode.rewards ? Array.from(unpack(episode.rewards, Float32Array)) : [], name: "reward", mode: "lines"},
    {y: episode.success ? Array.from(unpack(episode.success, Uint8Array)) : [], name: "frames at goal", mode: "lines",
     yaxis: "y2"}];
  const layout = {title: {text: "Reward and success"}, ...withLegend, margin: {...withLegend.margin, r: 54},
                  shapes: marker(step), dragmode: false, xaxis: axis("control step"),
                  yaxis: axis("reward (per control step)"),
                  yaxis2: {...axis("raw frames at the goal"), overlaying: "y", side: "right", rangemode: "tozero",
                           tickmode: "auto", nticks: 4, tickformat: "d", showgrid: false}};
  return Plotly.react("rewards", traces, layout, settings);
}

names.forEach((name, index) => {
  const label = document.createElement("label"), box = document.createElement("input");
  box.type = "checkbox";
  box.value = index;
  box.checked = index < 3;
  label.append(box, " " + name);
  byId("choices").append(label);
});
const redraw = startFrames(data, (episode, frame) => [
  drawActions(episode, frame.step), drawRewards(episode, frame.step)]);
byId("choices").addEventListener("change", redraw);
