// The page demo.html of an export: its student answers a picture that is dropped, chosen or pasted, or what a camera sees.
(async () => {
  const { Problem, reason, open, decode, live, bars } = window.studentInBrowser;
  const $ = (selector) => document.querySelector(selector);
  const say = (words, isProblem = false) => { $(".state").textContent = words; $(".state").classList.toggle("problem", isProblem); };
  const words = (error) => (error instanceof Problem ? error.message : `This did not work: ${reason(error)}.`);
  const { classes, engine } = JSON.parse($("#settings").textContent);
  const input = $(".drop input"), image = $(".drop img"), video = $("video"), button = $(".camera");
  let student, camera = null, asks = 0;

  if (window.location.protocol === "file:") {
    say("A browser runs this page only when a web server sends it. In its folder: python -m http.server, then open http://localhost:8000/demo.html", true);
    return;
  }
  try {
    student = await open(engine, Uint8Array.from(atob($("#model").textContent), (letter) => letter.charCodeAt(0)), classes);
  } catch (error) {
    say(words(error), true);
    return;
  }
  const ready = `${student.engine}, one thread.`;
  say(ready);
  input.disabled = button.disabled = false;

  async function answer(file) {
    const nth = ++asks;
    camera?.stop();
    try {
      const pixels = await decode(file), top = student.top(await student.ask(pixels));
      if (nth !== asks) return;
      bars($(".answer"), top);
      URL.revokeObjectURL(image.src);
      Object.assign(image, { src: URL.createObjectURL(file), alt: file.name, hidden: false });
      say(`${ready} It takes ${(await student.measure(pixels)).toFixed(1)} ms.`);
    } catch (error) {
      if (nth === asks) say(words(error), true);
    }
  }
  async function start() {
    button.disabled = true;
    asks += 1;
    video.hidden = false;
    $(".drop").hidden = true;
    try {
      camera = await live(student, video, {
        show(probabilities, rate, ms) {
          bars($(".answer"), student.top(probabilities));
          $(".rate").textContent = `${rate.toFixed(0)} frames a second; the student takes ${ms.toFixed(0)} ms`;
        },
        stopped,
      });
      button.textContent = "Stop the camera";
      say(ready);
    } catch (error) {
      stopped();
      say(words(error), true);
    }
    button.disabled = false;
  }
  function stopped(why) {
    camera = null;
    video.hidden = true;
    $(".drop").hidden = false;
    $(".rate").textContent = "";
    button.textContent = "Use the camera";
    if (why) say(why);
  }

  button.addEventListener("click", () => (camera ? camera.stop() : start()));
  input.addEventListener("change", () => { if (input.files.length) answer(input.files[0]); });
  document.addEventListener("paste", ({ clipboardData }) => { if (clipboardData?.files.length) answer(clipboardData.files[0]); });
  for (const type of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(type, (event) => {
      event.preventDefault(); // else the browser would leave the page and show the file
      $(".drop").classList.toggle("over", type === "dragover");
      if (type === "drop" && event.dataTransfer.files.length) answer(event.dataTransfer.files[0]);
    });
  }
})();
