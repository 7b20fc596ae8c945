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

  // At most about seven round numbers in a range, as an axis of powers of ten has them.
  function logTicks(low, high) {
    if (high / low < 8) {
      const rough = (high - low) / 7;
      const power = 10 ** Math.floor(Math.log10(rough));
      const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
      const ticks = [];
      for (let k = Math.ceil(low / step); k * step <= high; k++) ticks.push(k * step);
      return ticks;
    }
    const first = Math.floor(Math.log10(low));
    const last = Math.ceil(Math.log10(high));
    for (const factors of [[1, 2, 5], [1, 3], [1]]) {
      const ticks = [];
      for (let k = first; k <= last; k++) ticks.push(...factors.map((factor) => factor * 10 ** k));
      const inside = ticks.filter((tick) => low <= tick && tick <= high);
      if (inside.length <= 7 || factors.length === 1) return inside;
    }
    return [];
  }

  function keepTicks(plot, models) {
    const ticker = models.find((model) => model.tags.includes("log-ticks"));
    if (ticker === undefined) return;
    const range = plot.y_range;
    const update = () => {
      if (range.start > 0 && range.end > range.start) ticker.ticks = logTicks(range.start, range.end);
    };
    range.properties.start.change.connect(update);
    range.properties.end.change.connect(update);
    update();
  }

  async function interactive(key, item) {
    const place = document.getElementById(`${key}-interactive`);
    const still = place.parentElement.querySelector(".static");
    place.hidden = false;
    const views = await Bokeh.embed.embed_item(item, place.id);
    const [view] = [...views];
    const models = [...view.model.document.all_models];
    still.hidden = true;
    keepTicks(view.model, models);
    paint(models);
    dark.addEventListener("change", () => paint(models));
    const zoom = models.find((model) => model.type === "BoxZoomTool");
    const enter = (event) => { // a mouse zooms at once, while a finger scrolls the page until the tool is chosen
      if (event.pointerType !== "mouse") return;
      zoom.active = true;
      place.removeEventListener("pointerover", enter);
    };
    place.addEventListener("pointerover", enter);
  }

  const data = document.getElementById("charts");
  if (data !== null && typeof Bokeh !== "undefined") {
    for (const [key, item] of Object.entries(JSON.parse(data.textContent))) interactive(key, item);
  }
})();
