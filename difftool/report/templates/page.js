// The sliders of the page, and its charts where Bokeh came with it. Without this script the page shows a few pictures
// of each slider, and charts that do not move.
(() => {
  "use strict";

  const PAUSE = 220; // milliseconds between two pictures of a film
  const dark = matchMedia("(prefers-color-scheme: dark)");

  function slider(figure) {
    const range = figure.querySelector("input[type=range]");
    if (range === null) return;
    const output = figure.querySelector("output");
    const button = figure.querySelector("button");
    const frames = [...figure.querySelectorAll(".frame")];
    let timer = null;

    function show() {
      const chosen = Number(range.value);
      frames.forEach((frame, i) => frame.classList.toggle("current", i === chosen));
      output.textContent = frames[chosen].dataset.label;
      range.setAttribute("aria-valuetext", frames[chosen].dataset.label);
    }

    function stop() {
      clearInterval(timer);
      timer = null;
      button.textContent = button.dataset.play;
      button.setAttribute("aria-label", button.getAttribute("aria-label").replace(/^Pause/, "Play"));
    }

    function next() {
      const last = Number(range.value) === frames.length - 1;
      if (last) return stop();
      range.value = Number(range.value) + 1;
      show();
    }

    button.addEventListener("click", () => {
      if (timer !== null) return stop();
      if (Number(range.value) === frames.length - 1) range.value = 0;
      show();
      timer = setInterval(next, PAUSE);
      button.textContent = button.dataset.pause;
      button.setAttribute("aria-label", button.getAttribute("aria-label").replace(/^Play/, "Pause"));
    });
    range.addEventListener("input", () => {
      if (timer !== null) stop();
      show();
    });
    figure.querySelector(".controls").hidden = false;
    figure.classList.add("scripted");
    show();
  }

  document.querySelectorAll(".slider").forEach(slider);

  // Charts

  function colours() {
    const style = getComputedStyle(document.documentElement);
    return (name) => style.getPropertyValue(`--${name}`).trim();
  }

  function paint(models) {
    const colour = colours();
    for (const model of models) {
      for (const tag of model.tags) {
        if (/^c\d$/.test(tag)) {
          for (const part of ["line_color", "fill_color"]) {
            if (part in model.properties) model.setv({ [part]: colour(tag) });
          }
        }
      }
      if ("axis_label_text_color" in model.properties) {
        model.setv({
          axis_label_text_color: colour("ink"),
          major_label_text_color: colour("faint"),
          axis_line_color: colour("faint"),
          major_tick_line_color: colour("faint"),
        });
      }
      if ("grid_line_color" in model.properties) model.setv({ grid_line_color: colour("rule") });
    }
  }

  async function interactive(key, item) {
    const place = document.getElementById(`${key}-interactive`);
    const still = place.parentElement.querySelector(".static");
    place.hidden = false;
    const views = await Bokeh.embed.embed_item(item, place.id);
    const [view] = [...views];
    const models = [...view.model.document.all_models];
    still.hidden = true;
    paint(models);
    dark.addEventListener("change", () => paint(models));
    if (matchMedia("(pointer: fine)").matches) {
      models.filter((model) => model.type === "BoxZoomTool").forEach((tool) => { tool.active = true; });
    }
  }

  const data = document.getElementById("charts");
  if (data !== null && typeof Bokeh !== "undefined") {
    for (const [key, item] of Object.entries(JSON.parse(data.textContent))) interactive(key, item);
  }
})();
