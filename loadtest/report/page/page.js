"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const moment = document.getElementById("moment");
  if (!moment || !data.columns) return;
  const root = document.documentElement;
  const slider = document.getElementById("slider");
  const clock = document.getElementById("clock");
  const digits = (v) => Math.abs(v) >= 9.95 ? Math.round(v).toLocaleString("en") : String(Number(v.toPrecision(2)));
  const format = {
    count: digits,
    rate: (v) => digits(v) + "/s",
    cores: (v) => String(Number(v.toFixed(2))),
    ms: (v) => v >= 999.5 ? digits(v / 1000) + " s" : digits(v) + " ms",
    bytes: (v) => {
      let unit = 0;
      for (; v >= 1024 && unit < 4; unit++) v /= 1024;
      return digits(v) + " " + ["B", "KiB", "MiB", "GiB", "TiB"][unit];
    },
  };
  const time = (s) => {
    s = Math.floor(s);
    const two = (n) => String(n).padStart(2, "0");
    const minutes = Math.floor(s / 60);
    return s < 3600 ? minutes + ":" + two(s % 60) : Math.floor(minutes / 60) + ":" + two(minutes % 60) + ":" + two(s % 60);
  };
  const outputs = [...document.querySelectorAll("[data-value]")].map((element) => {
    const [figure, series] = element.dataset.value.split(":");
    return { element, summary: element.textContent, values: data.values[figure][series], unit: data.figures[figure] };
  });
  const show = (share) => {
    share = Math.min(Math.max(share, 0), 1);
    const at = share * data.duration;
    const column = Math.min(Math.floor(at / data.seconds), data.columns - 1);
    root.classList.add("probing");
    root.style.setProperty("--x", share);
    slider.value = column;
    for (const o of outputs) {
      const v = o.values[column];
      o.element.textContent = v === null || v === undefined ? "–" : format[o.unit](v);
    }
    const faults = data.faults.filter((f) => f.from <= (column + 1) * data.seconds && f.end >= column * data.seconds);
    clock.textContent = [time(column * data.seconds), ...faults.map((f) => f.name)].join(" · ");
  };
  const rest = () => {
    root.classList.remove("probing");
    for (const o of outputs) o.element.textContent = o.summary;
    clock.textContent = "move over a picture";
  };
  slider.max = data.columns - 1;
  slider.addEventListener("input", () => show((Number(slider.value) + 0.5) * data.seconds / data.duration));
  slider.addEventListener("blur", rest);
  for (const area of document.querySelectorAll("[data-area]")) {
    const probe = (e) => {
      const box = area.getBoundingClientRect();
      show((e.clientX - box.left) / box.width);
    };
    area.addEventListener("pointermove", probe);
    area.addEventListener("pointerdown", probe);
    area.addEventListener("pointerleave", (e) => { if (e.pointerType === "mouse") rest(); });
  }
  moment.hidden = false;
  rest();
})();
