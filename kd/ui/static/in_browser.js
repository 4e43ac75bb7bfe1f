// The column "In this browser": opened by a button, which loads the engine and the run's student; then it answers each
// comparison beside the server's models, and what the camera sees.
(() => {
  const { answer } = window.distillery, { Problem, reason, open, decode, live, bars } = window.studentInBrowser;
  const TIMEOUT = 120000; // for a part of the student on a slow line
  const TEACHER_TIMEOUT = 600000;
  const MOST_STILL = 10; // up to so many classes keep their places in live mode, so that only the bars move

  function inBrowser({ element, props, server, upload, watch }) {
    const $ = (selector) => element.querySelector(selector);
    const button = (name) => $(`[data-do=${name}]`);
    const text = (selector, words) => { if ($(selector).textContent !== words) $(selector).textContent = words; };
    const say = (words, isProblem = false) => { text(".kd-opened", words); $(".kd-opened").classList.toggle("kd-problem", isProblem); };
    const words = (error) => (error instanceof Problem ? error.message : `This did not work (${reason(error)}). Try again.`);
    const asked = () => ({ ...props.value });
    const comparison = () => document.querySelector("#comparison");
    let opens = 0; // how often it was opened: what belongs to an earlier time is dropped
    let student = null, run = "", camera = null;

    async function ask(call, timeout = TIMEOUT) {
      let news;
      try {
        news = await answer(call, timeout);
      } catch {
        throw new Problem("The server gave no answer. Try again.");
      }
      if (news.problem) throw new Problem(news.problem);
      return news;
    }

    // --- Opening

    async function openColumn(name) {
      const nth = ++opens, value = asked(), started = performance.now();
      close();
      button("open").hidden = true;
      say("Asking what there is of this run…");
      try {
        const offer = await ask(server.offered(value));
        const file = offer.files.find((one) => one.name === name) ?? offer.files[0];
        const bytes = await fetchStudent(value, file, (done) => nth === opens && say(`Loading the student: ${(done / 1e6).toFixed(1)} of ${(file.bytes / 1e6).toFixed(1)} MB…`));
        if (nth !== opens) return;
        say("Loading the engine…");
        const opened = await open(offer.engine, bytes, offer.classes);
        if (nth !== opens) { opened.close(); return; }
        [student, run] = [opened, value.run];
        choices(offer.files, file.name);
        const seconds = ((performance.now() - started) / 1000).toFixed(1);
        say(`${student.engine}, WebAssembly, one thread; ${(bytes.length / 1e6).toFixed(2)} MB of ${file.words} weights; loaded in ${seconds} s.`);
        button("camera").hidden = false;
        if (document.activeElement === document.body) button("camera").focus(); // the button that had the focus is gone
        await compared();
      } catch (error) {
        if (nth !== opens) return;
        say(words(error), true);
        button("open").hidden = false;
      }
    }
    async function fetchStudent(value, file, progress) {
      const bytes = new Uint8Array(file.bytes);
      let mark = null;
      for (let start = 0; start < bytes.length;) {
        progress(start);
        const news = await ask(server.part({ ...value, name: file.name, start }));
        mark ??= news.mark;
        if (news.mark !== mark || news.bytes !== bytes.length) throw new Problem("The student was exported anew meanwhile. Open this again.");
        const data = Uint8Array.from(atob(news.data), (letter) => letter.charCodeAt(0));
        bytes.set(data, start);
        start += data.length;
      }
      return bytes;
    }
    function choices(files, chosen) {
      const select = $("select");
      select.replaceChildren(...files.map(({ name, words }) => new Option(words, name, name === chosen, name === chosen)));
      $(".kd-weights").hidden = files.length < 2;
    }
    function close() {
      camera?.stop();
      student?.close();
      [student, run] = [null, ""];
      for (const name of ["camera", "stop"]) button(name).hidden = true;
      $(".kd-weights").hidden = true;
      text(".kd-compared", "");
      for (const cell of comparison()?.querySelectorAll(".kd-here") ?? []) cell.hidden = true;
    }

    // --- Beside the server's answers

    async function compared() {
      const root = comparison()?.querySelector("[data-run]"), mine = student;
      if (!root || !mine) return;
      text(".kd-compared", "");
      if (root.dataset.run !== run) { text(".kd-compared", "The comparison below is of another run. Click Compare for this one."); return; }
      const cells = [...root.querySelectorAll(".kd-here[data-source]")];
      for (const cell of root.querySelectorAll("th.kd-here")) cell.hidden = false;
      let first = null, same = 0, answered = 0;
      for (const cell of cells) {
        if (mine !== student || !root.isConnected) return;
        cell.hidden = false;
        try {
          const pixels = await picture(cell.dataset.source), top = mine.top(await mine.ask(pixels));
          first ??= pixels;
          answered += 1;
          same += top[0].label === cell.dataset.first;
          fill(cell, top);
        } catch (error) {
          cell.querySelector(".kd-problem").textContent = words(error);
        }
      }
      if (!first) return;
      const p50 = await mine.measure(first);
      if (mine !== student || !root.isConnected) return;
      root.querySelector(".kd-here-p50").textContent = `${p50 < 10 ? p50.toFixed(2) : p50.toFixed(1)} ms`;
      root.querySelector(".kd-here-engine").textContent = "p50 with preprocessing, one thread";
      root.querySelector(".kd-tiles .kd-here").hidden = false;
      text(".kd-compared", `On ${same} of ${answered} picture${answered === 1 ? "" : "s"} the same first choice as the student on the server.`);
    }
    async function picture(source) {
      const file = await fetch(source).catch(() => null);
      if (!file?.ok) throw new Problem("The picture is not on the server any more. Choose it again.");
      return decode(await file.blob());
    }
    function fill(cell, top) {
      cell.querySelector(".kd-problem").textContent = "";
      bars(cell.querySelector(".kd-bars"), top);
      const first = cell.querySelector(".kd-here-first");
      if (!first) return;
      first.textContent = `${top[0].label} ${(100 * top[0].confidence).toFixed(0)}%`;
      cell.querySelector("details").hidden = false;
    }

    // --- Live

    async function start() {
      const list = $(".kd-moving"), mine = student, still = mine.classes.length <= MOST_STILL;
      button("camera").disabled = true;
      text(".kd-compared", "");
      text(".kd-rate", "Waiting for the camera…");
      $(".kd-live").hidden = false;
      try {
        camera = await live(mine, $("video"), {
          show(probabilities, rate, ms) {
            const top = still ? mine.classes.map((label, index) => ({ label, confidence: probabilities[index] })) : mine.top(probabilities);
            bars(list, top);
            const most = Math.max(...top.map(({ confidence }) => confidence));
            top.forEach(({ confidence }, place) => list.children[place].classList.toggle("kd-most", confidence === most));
            text(".kd-rate", `${rate.toFixed(0)} frames a second; the student takes ${ms.toFixed(0)} ms`);
          },
          stopped(why) {
            camera = null;
            $(".kd-live").hidden = true;
            button("stop").hidden = true;
            button("camera").hidden = !student;
            text(".kd-compared", why);
          },
        });
        if (mine !== student) { camera.stop(); return; }
        [button("camera").hidden, button("stop").hidden] = [true, false];
        $(".kd-live .kd-teacher").replaceChildren();
        text(".kd-asked", "");
        button("stop").focus();
      } catch (error) {
        $(".kd-live").hidden = true;
        text(".kd-compared", words(error));
      } finally {
        button("camera").disabled = false;
      }
    }
    async function teacher() {
      const mine = camera;
      if (!mine) return;
      button("teacher").disabled = true; // one frame at a time
      text(".kd-asked", "Asking the teacher about this frame…");
      try {
        const { path } = await upload(new File([await mine.photo()], "frame.png", { type: "image/png" }));
        const news = await ask(server.ask_teacher({ ...asked(), path }), TEACHER_TIMEOUT);
        if (mine !== camera) return;
        bars($(".kd-live .kd-teacher"), news.teacher);
        text(".kd-asked", `Of the frame that you sent; ${news.ms.toFixed(1)} ms on the server, in PyTorch.`);
      } catch (error) {
        text(".kd-asked", words(error));
      } finally {
        button("teacher").disabled = false;
      }
    }

    element.addEventListener("click", ({ target }) => {
      const does = { open: () => openColumn(), camera: start, stop: () => { camera?.stop("The camera is off."); button("camera").focus(); }, teacher };
      does[target.closest("[data-do]")?.dataset.do]?.();
    });
    $("select").addEventListener("change", (event) => openColumn(event.target.value));
    watch("value", () => {
      if (!student || props.value.run === run) return;
      opens += 1;
      close();
      say("");
      button("open").hidden = false;
    });
    new MutationObserver(() => {
      const root = comparison()?.querySelector("[data-run]");
      if (!root || root.dataset.seen) return; // else what is filled in would begin it again
      root.dataset.seen = "yes";
      compared();
    }).observe(element.closest(".column"), { childList: true, subtree: true });
    // Another tab of the page is chosen: nothing is seen of the camera any more.
    new IntersectionObserver(() => { if (!element.offsetParent) camera?.stop("The camera was stopped: you left this tab."); }).observe(element);
  }

  Object.assign(window.distillery, { inBrowser });
})();
