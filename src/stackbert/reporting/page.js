"use strict";
// Draws the page's figures, again when the axis is switched or the reader's system turns dark.
(() => {
  const { figures, styles } = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  const fileName = (title, axis) => {
    const words = `${title} ${axis}`.toLowerCase().match(/[a-z0-9]+/g);
    return words ? words.join("-") : "figure";
  };

  const prepare = (element) => {
    const { title, specs, datasets } = figures[Number(element.dataset.figure)];
    const chart = element.querySelector(".chart");
    const save = element.querySelector(".save");
    let drawn = null;
    let queue = Promise.resolve();

    const axis = () => {
      const chosen = element.querySelector("input[type=radio]:checked");
      return chosen ? chosen.value : "";
    };

    const draw = async () => {
      try {
        if (drawn) drawn.finalize();
        const theme = dark.matches ? "dark" : "light";
        // Vega marks the rows it is given, so each drawing gets rows of its own.
        const spec = structuredClone({ ...specs[axis()], datasets });
        drawn = await window.vegaEmbed(chart, spec, {
          mode: "vega-lite",
          renderer: "svg",
          ast: true, // expressions are interpreted: the page's policy forbids making code of text
          actions: false,
          config: styles[theme],
          tooltip: { theme },
        });
        save.hidden = false;
      } catch (error) {
        drawn = null;
        save.hidden = true;
        chart.textContent = `This figure could not be drawn: ${error.message}`;
        console.error(error);
      }
    };
    // One drawing after the other: two at once would fight for the element.
    const redraw = () => {
      queue = queue.then(draw);
    };

    element.addEventListener("change", redraw);
    dark.addEventListener("change", redraw);
    save.addEventListener("click", async (event) => {
      const kind = event.target.dataset.kind;
      if (!kind || !drawn) return;
      const link = document.createElement("a");
      link.href = await drawn.view.toImageURL(kind, kind === "png" ? 2 : 1);
      link.download = `${fileName(title, axis())}.${kind}`;
      link.click();
    });
    redraw();
  };

  document.querySelectorAll("[data-figure]").forEach(prepare);
})();
