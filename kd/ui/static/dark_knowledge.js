// What the sliders do: the teacher's answer to one picture, softened here as they move; and the slider of the labels.
(() => {
  const { answer } = window.distillery;
  const TIMEOUT = 180000; // the teacher may have to be downloaded first
  const MOST_BARS = 6; // the other classes share one bar

  const softened = (logits, T) => {
    const most = Math.max(...logits), powers = logits.map((logit) => Math.exp((logit - most) / T));
    const sum = powers.reduce((a, b) => a + b, 0);
    return powers.map((power) => power / sum);
  };
  const percent = (p) => (p > 0 && p < 0.0005 ? "< 0.1%" : `${(100 * p).toFixed(1)}%`);

  function darkKnowledge({ element, props, server, watch }) {
    const $ = (selector) => element.querySelector(selector);
    const text = (selector, words) => { if ($(selector).textContent !== words) $(selector).textContent = words; };
    let prediction = null;
    let asked = ""; // what the teacher was last asked
    let asks = 0; // how often it was asked: an earlier answer is dropped

    // What cannot be asked, in words. The examples are the sample's: no other teacher has been made for them.
    const refusal = ({ teacher, dataset, picture }) => (
      teacher === "none" ? "There is no teacher: the student learns from the labels alone."
        : !teacher ? "Choose a teacher, and its answer to a picture is shown here."
          : "example" in picture && dataset !== "sample" ? "Upload a picture like those of your dataset under “Another picture”, and the teacher's answer to it is shown here."
            : "");
    async function follow() {
      const { teacher, method, picture } = props.value, words = refusal(props.value);
      const key = JSON.stringify([words, teacher, method, picture.example ?? picture.path]);
      if (key === asked) return show();
      const nth = ++asks;
      asked = key;
      prediction = null;
      $(".kd-answer").hidden = true;
      text(".kd-asking", words || "Asking the teacher");
      if (words) return;
      const { example, path } = picture;
      const update = await answer(server.teacher_says({ teacher, method, example, path }), TIMEOUT)
        .catch(() => ({ problem: "The server gave no answer. Choose the picture again." }));
      if (nth !== asks) return;
      text(".kd-asking", update.problem ?? "");
      if (update.problem) asked = "";
      else fill(update);
    }
    function fill(update) {
      prediction = update;
      const { logits, label } = update;
      const order = logits.map((_, index) => index).sort((a, b) => logits[b] - logits[a]);
      const few = order.length > MOST_BARS + 1, shown = few ? order.slice(0, MOST_BARS) : order;
      if (!shown.includes(label)) shown[MOST_BARS - 1] = label;
      prediction.groups = shown.map((index) => [index]);
      if (few) prediction.groups.push(order.filter((index) => !shown.includes(index)));
      $(".kd-bars").replaceChildren(...prediction.groups.map((group) => {
        const item = document.createElement("li"), [name, bar, figure] = ["span", "span", "span"].map((tag) => document.createElement(tag));
        name.textContent = name.title = group.length > 1 ? `${group.length} others` : update.names[group[0]];
        bar.append(document.createElement("i"), Object.assign(document.createElement("i"), { className: "kd-of-label" }));
        item.append(name, bar, figure);
        return item;
      }));
      const { source, name } = props.value.picture;
      Object.assign($(".kd-answer img"), { src: source, alt: name });
      text(".kd-label", update.labelled ? `Its label: ${update.names[label]}` : `It has no label; the teacher's first choice, ${update.names[label]}, stands for it`);
      $(".kd-answer").hidden = false;
      show();
    }
    // Of what the student is taught, the teacher's answer has the share lambda, the label the rest.
    function show() {
      if (!prediction) return;
      const T = Number(props.value.temperature), lambda = Number(props.value.lambda), { labels } = props.value;
      if (!(T > 0)) return;
      const p = softened(prediction.logits, T);
      [...$(".kd-bars").children].forEach((item, place) => {
        const group = prediction.groups[place], share = group.reduce((sum, index) => sum + p[index], 0);
        const [, bar, figure] = item.children, ofLabel = group.includes(prediction.label) ? 1 - lambda : 0;
        bar.children[0].style.width = `${100 * lambda * share}%`;
        bar.children[1].style.width = `${100 * ofLabel}%`;
        figure.textContent = percent(lambda * share + ofLabel);
      });
      $(".kd-key").hidden = lambda === 1;
      text(".kd-explanation", [prediction.sentences[T], labels && ofLabels(lambda)].filter(Boolean).join(" "));
    }
    // What becomes of pictures that lose their label. Methods of the DKD family use labels at any lambda.
    function ofLabels(lambda) {
      if (lambda === 0) return "Nothing is learned from pictures without a label.";
      if (lambda === 1 && !props.value.method?.startsWith("dkd")) return "Labels matter only without the teacher.";
      return "Pictures without a label are learned from the teacher alone.";
    }
    watch("value", follow);
    follow();
  }

  function choosePicture({ element, props, upload, trigger }) {
    const say = (words) => { element.querySelector(".kd-asking").textContent = words; };
    function choose(picture) {
      say("");
      props.value = picture;
      for (const button of element.querySelectorAll("[data-nth]")) button.setAttribute("aria-pressed", Number(button.dataset.nth) === picture.example);
      trigger("change");
    }
    element.addEventListener("click", (event) => {
      const button = event.target.closest("[data-nth]");
      if (button) choose({ example: Number(button.dataset.nth), source: button.querySelector("img").src, name: button.getAttribute("aria-label").replace("Ask about", "The example") });
    });
    element.addEventListener("change", async (event) => {
      const [file] = event.target.files ?? [];
      if (!file) return;
      say("Uploading");
      try {
        const { path, url } = await upload(file);
        choose({ path, source: url, name: file.name });
      } catch {
        say("The picture could not be uploaded: it is too large, or the server is away.");
      }
      event.target.value = "";
    });
  }

  function labels({ element, props, trigger, watch, stops }) {
    const slider = element.querySelector("input"), output = element.querySelector("output");
    const show = () => {
      const { words } = stops[slider.value];
      output.textContent = words;
      slider.setAttribute("aria-valuetext", words);
      slider.style.setProperty("--range_progress", `${100 * slider.value / slider.max}%`);
    };
    const follow = () => {
      slider.value = stops.findIndex(({ value }) => value === (props.value || null));
      show();
    };
    slider.addEventListener("input", () => {
      show();
      props.value = stops[slider.value].value;
      trigger("change");
    });
    watch("value", follow);
    follow();
  }

  Object.assign(window.distillery, { darkKnowledge, choosePicture, labels });
})();
