// What the scripts of all tabs share: calls of the server, charts, and the page's address. It comes first.
window.distillery = (() => {
  const GIVE_UP = 10000;
  const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
  // The value of a call of the server. gradio resolves a failed one to nothing, or to a description of the error.
  const answer = async (call, timeout = GIVE_UP) => {
    const value = await Promise.race([call, sleep(timeout)]);
    if (!value || value.error || value.detail) throw Object.assign(new Error("no answer"), { answered: Boolean(value) });
    return value;
  };
  const plotly = async () => { while (!window.Plotly) await sleep(50); return window.Plotly; };

  // --- Charts

  // The theme's colours, light or dark, for a figure's layout
  const colours = () => {
    const style = getComputedStyle(document.body);
    const grid = style.getPropertyValue("--border-color-primary").trim();
    return {
      "font.color": style.getPropertyValue("--body-text-color").trim(),
      "font.family": getComputedStyle(document.querySelector(".gradio-container")).fontFamily,
      "xaxis.gridcolor": grid, "yaxis.gridcolor": grid, "xaxis.zerolinecolor": grid, "yaxis.zerolinecolor": grid,
      "hoverlabel.bgcolor": style.getPropertyValue("--background-fill-primary").trim(),
      "hoverlabel.bordercolor": grid,
    };
  };
  const themed = (layout) => {
    layout = structuredClone(layout);
    for (const [path, value] of Object.entries(colours())) {
      const [group, name] = path.split(".");
      layout[group] = { ...layout[group], [name]: value };
    }
    return layout;
  };
  const resizer = new ResizeObserver((entries) => {
    for (const { target } of entries) if (target.data && target.offsetParent) window.Plotly.Plots.resize(target);
  });
  const CONFIG = { displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "sendChartToCloud"] };

  async function draw(chart, figure) {
    const Plotly = await plotly();
    const isStill = figure.layout.dragmode === false;
    await Plotly.react(chart, figure.data, themed(figure.layout), { ...CONFIG, displayModeBar: isStill ? false : "hover" });
    chart.setAttribute("role", "group");
    chart.setAttribute("aria-label", `Chart: ${figure.layout.title.text}`);
    resizer.observe(chart);
  }
  // Append new points, { trial: { figure: { x, field: y, ... } } }, to the traces of a chart that have them.
  async function append(chart, trials) {
    const Plotly = await plotly(), x = [], y = [], grows = [];
    chart.data.forEach(({ meta }, trace) => {
      const values = trials[meta?.trial]?.[chart.dataset.figure];
      if (!values) return;
      grows.push(trace);
      x.push(values.x);
      y.push(values[meta.field]);
    });
    if (grows.length) await Plotly.extendTraces(chart, { x, y }, grows);
  }
  new MutationObserver(() => {
    for (const chart of document.querySelectorAll(".kd-chart")) if (chart.data) window.Plotly.relayout(chart, colours());
  }).observe(document.documentElement, { attributes: true, subtree: false, attributeFilter: ["class"] });

  // --- The address

  // This page's address, with the run that it shows (perhaps with its read-only key) or the sweep
  function address(shown) {
    const url = new URL(window.location.href);
    for (const name of ["run", "view", "sweep"]) {
      if (shown[name]) url.searchParams.set(name, shown[name]);
      else url.searchParams.delete(name);
    }
    return url;
  }

  return { answer, sleep, draw, append, address };
})();
