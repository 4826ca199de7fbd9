const report = JSON.parse(byId("data").textContent);

function makePlace(curve) {
  const place = document.createElement("div");
  place.className = "panel plot";
  byId(curve.section === "data" ? "data-section" : "training").append(place);
  return place;
}

function drawCurve(curve, place) {
  const traces = curve.lines.map(line => ({
    x: line.x, y: line.y, name: plain(line.name), mode: line.x.length < 50 ? "lines+markers" : "lines",
    line: {width: 1.8}, marker: {size: 6}}));
  const layout = {title: {text: plain(curve.title)}, ...(traces.length > 1 ? withLegend : {margin}), dragmode: false,
                  xaxis: axis(plain(curve.x)),
                  yaxis: {...axis(plain(curve.y)), rangemode: "tozero", ...(curve.percent ? {range: [-3, 103]} : {})}};
  return Plotly.newPlot(place, traces, layout, settings);
}

const places = report.curves.map(makePlace);  // all of them first: each one makes the others narrower
Promise.all(report.curves.map((curve, index) => drawCurve(curve, places[index]))).then(() => { document.body.dataset.curves = report.curves.length; });
if (report.frames) startFrames(report.frames, () => []);

const again = byId("again");
if (again) again.addEventListener("click", () => {
  const videos = Array.from(document.querySelectorAll("video"));
  videos.forEach(video => { video.pause(); video.currentTime = 0; });
  videos.forEach(video => video.play());
});
