// A finger on a chart. One that goes across zooms, as the mouse does; one that goes up or down scrolls the page. Plotly would take
// both, so it is told of the finger only once the finger goes across. A tap reaches Plotly as the click that the browser makes of it.

const FIRST = 6; // px after which it is clear where a finger goes

export function leaveScrolling(chart) {
  let began = null;
  const listen = (name, hear) => chart.addEventListener(name, hear, { capture: true, passive: true });
  listen("touchstart", (event) => {
    if (!event.isTrusted) return; // our own, below
    began = event.touches.length === 1 ? event.touches[0] : null;
    event.stopPropagation();
  });
  listen("touchmove", (event) => {
    if (!began) return;
    const across = Math.abs(event.touches[0].clientX - began.clientX), along = Math.abs(event.touches[0].clientY - began.clientY);
    if (Math.max(across, along) < FIRST) return;
    const touches = [began], target = began.target;
    began = null;
    if (across > along) target.dispatchEvent(new TouchEvent("touchstart", { touches, targetTouches: touches, changedTouches: touches, bubbles: true, cancelable: true }));
  });
}
