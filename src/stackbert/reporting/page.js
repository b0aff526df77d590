"use strict";
// Draws the page's figures, again when the axis is switched or the reader's system turns dark.
(() => {
  const { figures, styles } = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  const fileName = (title, axis) => {
    const words = `${title} ${axis}`.toLowerCase().match(/[a-z0-9]+/g);
    return words ? words.join("-") : "figure";
  };

  // In a figure with choices, a click on a mark chooses what its row of data names; one beside the
  // marks leaves everything as it was. The figure has a list to select from for each choice, too.
  const choose = (view, choices) => {
    if (!choices.length) return;
    view.addEventListener("click", (event, item) => {
      for (const field of choices) {
        const value = item?.datum?.[field];
        if (value !== undefined) view.signal(`shown_${field}`, value);
      }
      view.runAsync();
    });
  };

  const prepare = (element) => {
    const { title, specs, datasets } = figures[Number(element.dataset.figure)];
    const chart = element.querySelector(".chart");
    const save = element.querySelector(".save");
    let drawn = null;
    let queue = Promise.resolve();

    const axis = () => {
      const chosen = element.querySelector(".switch input:checked");
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
        choose(drawn.view, spec.usermeta?.choices ?? []);
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

    // The switch alone: a figure's own inputs change what it shows without drawing it anew.
    const axes = element.querySelector(".switch");
    if (axes) axes.addEventListener("change", redraw);
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
