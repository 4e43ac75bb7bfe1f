// A student in a browser: ONNX Runtime Web runs the exported file on pictures and on what a camera sees. The Compare tab and
// an export's demo.html share this script. It loads nothing by itself.
window.studentInBrowser = (() => {
  const WARM_UP = 5, TRIALS = 60, LEAST_TRIALS = 10, MOST_MS = 2000; // of a measurement
  const TICKS = 20; // a timed group of runs lasts so many steps of the browser's clock, which some make coarse on purpose
  const RATE_MS = 2000; // frames a second are counted over this time
  const CAMERA = { video: { width: { ideal: 640 }, height: { ideal: 480 }, facingMode: { ideal: "environment" } }, audio: false };
  // The least WebAssembly module with an instruction of SIMD: a browser that finds it valid has SIMD.
  const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];

  // What went wrong, in words for whoever looks at the page
  class Problem extends Error {}
  const reason = (error) => String(error?.message ?? error).split("\n")[0].slice(0, 200);
  const now = () => performance.now();
  const pause = (ms = 0) => new Promise((done) => setTimeout(done, ms));
  const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];

  // --- The engine and the model

  let engine = null; // a promise: several may ask for it at once

  // The engine, loaded once; `files` are the addresses of its `script` and its `wasm`.
  function loadEngine(files) {
    engine ??= (async () => {
      if (typeof WebAssembly !== "object" || !WebAssembly.validate(new Uint8Array(SIMD))) {
        throw new Problem("This browser has no WebAssembly with SIMD, which the engine needs. Use a newer one: Chrome or Edge 91, Firefox 89, Safari 16.4.");
      }
      try {
        const ort = await import(new URL(files.script, document.baseURI).href);
        ort.env.wasm.wasmPaths = { wasm: new URL(files.wasm, document.baseURI).href };
        ort.env.wasm.numThreads = 1; // more need headers that many hosts do not send
        return ort;
      } catch (error) {
        throw new Problem(`The engine's files could not be loaded (${reason(error)}). Load the page again.`);
      }
    })();
    engine.catch(() => { engine = null; }); // it can be tried again
    return engine;
  }

  // Opens a model: a file's bytes (Uint8Array) and the names of its classes.
  async function open(files, bytes, classes) {
    const ort = await loadEngine(files);
    let session;
    try {
      session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    } catch (error) {
      throw new Problem(`This browser could not load the student (${reason(error)}).`);
    }
    let last = Promise.resolve(); // a session answers one question at a time
    // The probabilities of the classes for pixels ({ data: Uint8Array of height x width x 3, width, height })
    function ask({ data, width, height }) {
      const answer = last.then(async () => {
        const picture = new ort.Tensor("uint8", data, [height, width, 3]);
        try {
          return (await session.run({ picture })).probabilities.data;
        } catch (error) {
          throw new Problem(`The student could not answer (${reason(error)}).`);
        }
      });
      last = answer.catch(() => {});
      return answer;
    }
    const top = (probabilities, most = 5) => Array.from(probabilities, (confidence, index) => ({ label: classes[index], confidence }))
      .sort((a, b) => b.confidence - a.confidence).slice(0, most);
    return {
      classes, ask, top, engine: `ONNX Runtime Web ${ort.env.versions.web}`,
      measure: (pixels) => measure(() => ask(pixels)),
      close: () => last.then(() => session.release()),
    };
  }

  // The smallest step of the browser's clock, in ms
  function tick() {
    const start = now();
    let next;
    do next = now(); while (next === start);
    return next - start;
  }
  // The median time of a call in ms, warm. Where the clock is coarse, several calls are timed together.
  async function measure(call) {
    const least = TICKS * Math.min(tick(), tick(), tick()), warm = now();
    for (let n = 0; n < WARM_UP; n += 1) await call();
    const group = Math.max(1, Math.ceil(least / Math.max((now() - warm) / WARM_UP, 0.01))), times = [], start = now();
    while (times.length < TRIALS && (times.length < LEAST_TRIALS || now() - start < MOST_MS)) {
      const before = now();
      for (let n = 0; n < group; n += 1) await call();
      times.push((now() - before) / group);
      await pause(); // the page stays alive
    }
    return median(times);
  }

  // --- Pixels

  // The pixels of a picture's file as the server reads them: upright, no colour profile applied, and what is transparent on
  // white. (Pillow's bare convert("RGB") would drop the alpha channel, and show colours that nobody was meant to see.)
  async function decode(blob) {
    const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
    let bitmap;
    try {
      bitmap = await createImageBitmap(blob, options);
    } catch {
      throw new Problem("This browser cannot read this kind of picture, or it is damaged.");
    }
    try {
      return pixels(bitmap, bitmap.width, bitmap.height);
    } finally {
      bitmap.close();
    }
  }
  function pixels(source, width, height, canvas = document.createElement("canvas")) {
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, height);
    context.drawImage(source, 0, 0, width, height);
    let rgba;
    try {
      rgba = context.getImageData(0, 0, width, height).data;
    } catch {
      throw new Problem(`The picture, ${width} x ${height} pixels, is too large for this browser.`);
    }
    const data = new Uint8Array(3 * width * height);
    for (let from = 0, to = 0; to < data.length; from += 4) {
      data[to++] = rgba[from];
      data[to++] = rgba[from + 1];
      data[to++] = rgba[from + 2];
    }
    return { data, width, height };
  }

  // --- The camera

  const REFUSED = {
    NotAllowedError: "The camera was refused. Allow it for this page in the browser's address bar, then try again.",
    NotFoundError: "There is no camera.",
    NotReadableError: "The camera cannot be used: another program may have it.",
  };
  async function openCamera(video) {
    if (!window.isSecureContext) throw new Problem("A browser gives a camera only to pages from https or from localhost, and this page is from neither.");
    if (!navigator.mediaDevices?.getUserMedia) throw new Problem("This browser gives pages no camera.");
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia(CAMERA);
      await video.play();
    } catch (error) {
      closeCamera(video);
      throw new Problem(REFUSED[error.name] ?? `The camera cannot be used (${reason(error)}).`);
    }
  }
  function closeCamera(video) {
    video.srcObject?.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
  }
  // Resolves at the camera's next frame, so that none is asked about twice; or after a while, where none comes.
  const nextFrame = (video) => Promise.race([
    pause(500),
    new Promise((done) => (video.requestVideoFrameCallback ? video.requestVideoFrameCallback(done) : requestAnimationFrame(done))),
  ]);
  // Asks the student about what the camera shows, again and again. `show` gets the probabilities, the frames of the last
  // seconds as a rate, and the ms that the student took. `stopped` gets words, none where `stop` of what is returned was called.
  async function live(student, video, { show, stopped }) {
    await openCamera(video);
    const canvas = document.createElement("canvas"), frames = [];
    let on = true;
    function stop(words = "") {
      if (!on) return;
      on = false;
      closeCamera(video);
      document.removeEventListener("visibilitychange", whenHidden);
      stopped(words);
    }
    const whenHidden = () => { if (document.hidden) stop("The camera was stopped: you left the page."); };
    document.addEventListener("visibilitychange", whenHidden);
    video.srcObject.getTracks()[0].addEventListener("ended", () => stop("The camera was taken away."));
    (async () => {
      while (on) {
        await nextFrame(video);
        if (!on || !video.videoWidth) continue;
        const frame = pixels(video, video.videoWidth, video.videoHeight, canvas), before = now();
        const probabilities = await student.ask(frame), end = now();
        if (!on) return;
        frames.push(end);
        while (frames[0] < end - RATE_MS) frames.shift();
        show(probabilities, frames.length > 1 ? (frames.length - 1) * 1000 / (end - frames[0]) : 0, end - before);
      }
    })().catch((error) => stop(reason(error)));
    const photo = () => new Promise((done) => { pixels(video, video.videoWidth, video.videoHeight, canvas); canvas.toBlob(done, "image/png"); });
    return { stop, photo };
  }

  // --- Bars

  const percent = (p) => `${(100 * p).toFixed(1)}%`;
  function bar() {
    const item = document.createElement("li");
    item.append(document.createElement("span"), document.createElement("span"), document.createElement("i"));
    return item;
  }
  // Shows classes with their confidences as bars in a list, whose items stay, so that the bars move.
  function bars(list, tops) {
    while (list.children.length < tops.length) list.append(bar());
    while (list.children.length > tops.length) list.lastChild.remove();
    tops.forEach(({ label, confidence }, place) => {
      const [name, figure, line] = list.children[place].children;
      if (name.textContent !== label) name.textContent = label;
      figure.textContent = percent(confidence);
      line.style.width = `${(100 * confidence).toFixed(2)}%`;
    });
  }

  return { Problem, reason, open, decode, live, bars };
})();
