// The panel Dark knowledge: a teacher's answer to one picture, softened here as the slider moves.
window.distillery.darkKnowledge = (() => {
  const { answer } = window.distillery;
  const TIMEOUT = 180000; // the teacher may have to be downloaded first

  function darkKnowledge({ element, props, server, watch, upload, stops, use }) {
    const MOST_BARS = 10; // the other classes share one bar
    const $ = (selector) => element.querySelector(selector);
    const text = (selector, words) => { if ($(selector).textContent !== words) $(selector).textContent = words; };
    const slider = () => $("input[type=range]");
    let picture = null, prediction = null;
    let asked = ""; // what the teacher was last asked
    let asks = 0; // how often it was asked: an earlier answer is dropped
    let followed = null; // the temperature of the settings that the slider has followed

    const softened = (logits, T) => {
      const most = Math.max(...logits), powers = logits.map((logit) => Math.exp((logit - most) / T));
      const sum = powers.reduce((a, b) => a + b, 0);
      return powers.map((power) => power / sum);
    };
    const percent = (p) => (p > 0 && p < 0.0005 ? "< 0.1%" : `${(100 * p).toFixed(1)}%`);

    async function ask() {
      const { teacher, method } = props.value, key = JSON.stringify([teacher, method, picture?.asked]);
      if (!picture || key === asked) return;
      asked = key;
      const nth = ++asks;
      text(".kd-asking", "Asking the teacher");
      $(".kd-answer").hidden = true;
      const update = await answer(server.teacher_says({ teacher, method, ...picture.asked }), TIMEOUT)
        .catch(() => ({ problem: "The server gave no answer. Try again." }));
      if (nth !== asks) return;
      text(".kd-asking", update.problem ?? "");
      if (update.problem) asked = "";
      else fill(update);
    }
    function fill(update) {
      prediction = update;
      const order = update.logits.map((_, index) => index).sort((a, b) => update.logits[b] - update.logits[a]);
      const shown = order.length > MOST_BARS + 1 ? order.slice(0, MOST_BARS) : order;
      prediction.groups = shown.map((index) => [index]);
      if (shown.length < order.length) prediction.groups.push(order.slice(MOST_BARS));
      $(".kd-bars").replaceChildren(...prediction.groups.map((group) => {
        const item = document.createElement("li"), name = document.createElement("span");
        name.textContent = group.length > 1 ? `${group.length} other classes` : update.names[group[0]];
        item.append(name, document.createElement("span"), document.createElement("i"));
        return item;
      }));
      Object.assign($(".kd-answer img"), { src: picture.source, alt: picture.name });
      const label = update.names[update.label];
      text(".kd-label", update.labelled ? `Its label: ${label}` : `It has no label here; the teacher's first choice, ${label}, stands for it`);
      $(".kd-answer").hidden = false;
      showAtTemperature();
    }
    function showAtTemperature() {
      const nth = Number(slider().value), T = stops[nth];
      text("output", `T = ${T}`);
      slider().setAttribute("aria-valuetext", `T = ${T}`);
      text(".kd-use", `Use T = ${T} for the run`);
      if (!prediction) return;
      const p = softened(prediction.logits, T);
      [...$(".kd-bars").children].forEach((item, place) => {
        const share = prediction.groups[place].reduce((sum, index) => sum + p[index], 0);
        item.children[1].textContent = percent(share);
        item.children[2].style.width = `${100 * share}%`;
      });
      text(".kd-explanation", prediction.sentences[nth]);
    }
    // The settings: which teacher, whether the examples fit, and where the slider begins.
    function follow() {
      const { dataset, temperature } = props.value;
      $(".kd-offered").hidden = dataset !== "sample";
      if (temperature !== followed && temperature > 0) {
        followed = temperature;
        slider().value = stops.reduce((best, stop, nth) => (Math.abs(stop - temperature) < Math.abs(stops[best] - temperature) ? nth : best), 0);
        showAtTemperature();
      }
      if (!element.offsetParent) return;
      if (!picture && dataset === "sample") example($("[data-nth]"));
      else if (!picture) text(".kd-asking", "Upload a picture like those of your dataset.");
      ask();
    }
    function example(button) {
      const source = button.querySelector("img").src, name = button.getAttribute("aria-label").replace("Ask about ", "");
      choose({ asked: { example: Number(button.dataset.nth) }, source, name: `The example ${name}` });
    }
    function choose(one) {
      picture = one;
      for (const button of element.querySelectorAll("[data-nth]")) {
        button.setAttribute("aria-pressed", String(Number(button.dataset.nth) === one.asked.example));
      }
      ask();
    }
    async function uploadFrom(input) {
      const [file] = input.files;
      if (!file) return;
      text(".kd-asking", "Uploading");
      try {
        const { path, url } = await upload(file);
        choose({ asked: { path }, source: url, name: file.name });
      } catch {
        text(".kd-asking", "The picture could not be uploaded: it is too large, or the server is away.");
      }
      input.value = "";
    }
    slider().max = stops.length - 1;
    element.addEventListener("input", (event) => { if (event.target === slider()) showAtTemperature(); });
    element.addEventListener("change", (event) => { if (event.target.type === "file") uploadFrom(event.target); });
    element.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button?.dataset.nth) example(button);
      else if (button) use(stops[Number(slider().value)]);
    });
    new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting)) follow(); }).observe(element);
    watch("value", follow);
    follow();
  }

  return darkKnowledge;
})();
