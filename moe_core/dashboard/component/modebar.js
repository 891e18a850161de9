// The buttons that Plotly puts above a chart, as one stop of the Tab key: arrow keys, Home and End go from one to the next.

const WAYS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

// Called after each drawing: Plotly may have replaced the buttons, and each new one is a stop of the Tab key by itself.
export function oneStop(chart, name) {
  const bar = chart.querySelector(".modebar"), buttons = buttonsOf(chart);
  if (!bar || buttons.filter((one) => one.tabIndex === 0).length === 1) return;
  bar.setAttribute("aria-label", `Tools of ${name}`);
  stop(buttons, 0);
}

// Called once for each chart: the element around the buttons stays, while Plotly replaces the buttons in it.
export function listen(chart) {
  chart.addEventListener("keydown", (event) => {
    const buttons = buttonsOf(chart), at = buttons.indexOf(event.target);
    if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const to = event.key === "Home" ? 0 : event.key === "End" ? buttons.length - 1 : at + WAYS[event.key];
    if (Number.isNaN(to)) return;
    event.preventDefault();
    stop(buttons, (to + buttons.length) % buttons.length).focus();
  });
}

function buttonsOf(chart) {
  return [...chart.querySelectorAll(".modebar-btn")];
}

function stop(buttons, at) {
  buttons.forEach((one, nth) => { one.tabIndex = nth === at ? 0 : -1; });
  return buttons[at];
}
