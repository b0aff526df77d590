"use strict";
// Draws the page's figures, again when the reader's system turns dark.
(() => {
  const { figures, styles } = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const charts = document.querySelectorAll(".chart");
  const drawn = [];

  const draw = async (chart, place) => {
    const theme = dark.matches ? "dark" : "light";
    try {
      drawn[place]?.finalize();
      drawn[place] = await window.vegaEmbed(chart, structuredClone(figures[place]), {
        mode: "vega-lite",
        renderer: "svg",
        ast: true, // expressions are interpreted: the page's policy forbids making code of text
        actions: { export: true, source: false, compiled: false, editor: false },
        config: styles[theme],
        tooltip: { theme },
      });
    } catch (error) {
      chart.textContent = `This figure could not be drawn: ${error.message}`;
      console.error(error);
    }
  };
  // One drawing of a figure after the other: two at once would fight for the element.
  let queue = Promise.resolve();
  const drawAll = () => {
    queue = queue.then(() => Promise.all([...charts].map(draw)));
  };
  dark.addEventListener("change", drawAll);
  drawAll();
})();
