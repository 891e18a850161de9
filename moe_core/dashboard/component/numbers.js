// A knob's value as a person reads it, rounded as value_text() in moe_core/schema/settings.py does: 0.1, 2, 3e-3, 8.3e-4.

export function valueText(value) {
  const size = Math.abs(value);
  if (value && size < 0.01) {
    const one = value.toExponential(0);
    return (Number(one) === value ? one : value.toExponential(1)).replace("e+", "e");
  }
  return String(Number(value.toPrecision(Math.max(3, String(Math.trunc(size)).length))));
}
