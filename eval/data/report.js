// Draws the plots of a page in its own colours, and again when the reader turns to the dark or back.
// A colour in a figure is one of the page, var(--train), or a tint of it, var(--train)/0.2.
(() => {
  const style = getComputedStyle(document.documentElement);
  const colour = (all, name, opacity) => {
    const hex = style.getPropertyValue(name).trim();
    if (!opacity) return hex;
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    return `rgba(${r}, ${g}, ${b}, ${opacity})`;
  };
  const paint = (value) => {
    if (typeof value === "string") return value.replace(/^var\((--[\w-]+)\)(?:\/([\d.]+))?$/, colour);
    if (Array.isArray(value)) return value.map(paint);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, paint(part)]));
  };
  const coarse = matchMedia("(pointer: coarse)").matches; // a finger on a plot scrolls the page
  const draw = () => {
    for (const source of document.querySelectorAll("script[data-plot]")) {
      const { data, layout } = paint(JSON.parse(source.textContent));
      const font = { family: style.getPropertyValue("--font").trim(), size: 12, color: style.getPropertyValue("--ink").trim() };
      const shape = { ...layout, font, dragmode: coarse ? false : "zoom", paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" };
      Plotly.react(source.dataset.plot, data, shape, { displayModeBar: false, responsive: true });
    }
  };
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
