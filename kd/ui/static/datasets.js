// The Pictures tab. Files are uploaded first, a few at a time; then the server is asked to import them.
window.distillery.datasets = ({ element, props, server, upload, use }) => {
  const { answer, sleep } = window.distillery;
  const AT_ONCE = 4, POLL_BUSY = 500, POLL_LIST = 3000, TIMEOUT = 60000;
  const $ = (selector) => element.querySelector(selector);
  const say = (words, problem = false) => {
    if ($(".kd-message").textContent !== words) $(".kd-message").textContent = words;
    $(".kd-message").classList.toggle("kd-problem", problem);
  };
  const AWAY = { problem: "The server is away. Try again." };
  let shownMark = ""; // of the list that is shown
  let uploading = false, stopped = false, busy = false;

  // --- Named classes

  function addClass() {
    const item = document.createElement("li"), nth = $(".kd-classes").children.length + 1;
    item.innerHTML = `<input type="text" maxlength="120"> <label class="kd-drop kd-low"><b>Drop pictures here</b> <span>or click to choose them</span><input type="file" accept="image/*,.heic,.heif,.avif" multiple></label>
      <span class="kd-count"></span> <button type="button" class="kd-button" data-do="webcam">Webcam</button>
      <button type="button" class="kd-button kd-danger" data-do="remove">Remove</button>
      <div class="kd-webcam" hidden><video muted playsinline></video>
        <button type="button" class="kd-button" data-do="snap">Take a picture</button></div>`;
    const [name, files] = item.querySelectorAll("input");
    name.value = `Class ${nth}`;
    name.setAttribute("aria-label", "Name of the class");
    files.setAttribute("aria-label", "Pictures of the class");
    item.files = [];
    files.addEventListener("change", () => {
      item.files.push(...files.files);
      files.value = "";
      showCount(item);
    });
    $(".kd-classes").append(item);
    showCount(item);
    return item;
  }
  const showCount = (item) => {
    item.querySelector(".kd-count").textContent = `${item.files.length} picture${item.files.length === 1 ? "" : "s"}`;
  };
  async function toggleWebcam(item) {
    const video = item.querySelector("video"), panel = item.querySelector(".kd-webcam");
    if (video.srcObject) return closeWebcam(item);
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: true });
      await video.play();
      panel.hidden = false;
    } catch {
      say("The webcam cannot be used: there is none, or the browser does not allow it.", true);
    }
  }
  function closeWebcam(item) {
    const video = item.querySelector("video");
    video.srcObject?.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
    item.querySelector(".kd-webcam").hidden = true;
  }
  function takePicture(item) {
    const video = item.querySelector("video"), canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => {
      item.files.push(new File([blob], `webcam-${item.files.length + 1}.png`, { type: "image/png" }));
      showCount(item);
    });
  }

  // --- Files that are dropped

  // Beside a field too: the browser would leave the page and show the file.
  for (const type of ["dragover", "dragleave", "drop"]) {
    element.addEventListener(type, (event) => {
      const field = event.target.closest(".kd-drop");
      if (type !== "dragleave") event.preventDefault();
      field?.classList.toggle("kd-over", type === "dragover");
      if (type !== "drop" || !field) return;
      const input = field.querySelector("input"), taken = new DataTransfer();
      for (const file of [...event.dataTransfer.files].slice(0, input.multiple ? undefined : 1)) taken.items.add(file);
      input.files = taken.files;
      input.dispatchEvent(new Event("change", { bubbles: true }));
    });
  }
  function showChosen(input) {
    const files = [...input.files], megabytes = files.reduce((sum, file) => sum + file.size, 0) / 1e6;
    const what = files.length === 1 ? files[0].name : `${files.length} pictures`;
    input.closest("[data-way]").querySelector(".kd-dropped").textContent = files.length ? `${what}, ${megabytes.toFixed(1)} MB` : "";
  }

  // --- Import

  const way = () => $("input[name=kd-way]:checked").value;
  function chosen() {
    if (way() !== "classes") return [["", [...$(`[data-file=${way()}]`).files]]];
    return [...$(".kd-classes").children].map((item) => [item.querySelector("input").value, item.files]);
  }
  async function uploadAll(classes) {
    const queue = classes.flatMap(([, files], nth) => files.map((file) => ({ nth, file })));
    const paths = classes.map(() => []), of = queue.length;
    let done = 0;
    const uploadNext = async () => {
      for (let next; (next = queue.shift()) && !stopped;) {
        paths[next.nth].push((await upload(next.file)).path);
        done += 1;
        if (!stopped) showProgress(done, of, `Uploading ${done} of ${of}`);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, uploadNext));
    return classes.map(([name], nth) => [name, paths[nth]]);
  }
  function showProgress(done, of, words) {
    say(words);
    $("progress").hidden = false;
    $("progress").value = of ? done / of : 0;
  }
  function setBusy(on) {
    busy = on;
    $("[data-do=begin]").hidden = on;
    $("[data-do=cancel]").hidden = !on;
    if (!on) $("progress").hidden = true;
  }
  async function begin() {
    const classes = chosen();
    if (!classes.length || classes.some(([, files]) => !files.length)) return say("Choose the files first: an archive, or pictures for each class.", true);
    $(".kd-refused").replaceChildren();
    [uploading, stopped] = [true, false];
    setBusy(true);
    showProgress(0, 0, "Uploading");
    try {
      const name = $(".kd-name").value, asked = { owner: props.value.owner, way: way(), name, classes: await uploadAll(classes) };
      const { problem } = stopped ? { problem: "Cancelled; nothing was stored." } : await answer(server.begin(asked), TIMEOUT);
      if (problem) { setBusy(false); say(problem, !stopped); }
    } catch {
      stopped = true; // the other uploads too
      setBusy(false);
      say("The files could not be uploaded: one is too large, or the server is away.", true);
    }
    uploading = false;
  }
  async function cancel() {
    stopped = true;
    if (!uploading) await answer(server.act({ owner: props.value.owner, do: "cancel" })).catch(() => say(AWAY.problem, true));
  }

  // --- The list

  async function refresh() {
    const { mark, html, now } = await answer(server.offered({ owner: props.value.owner, seen: shownMark }));
    if (mark && mark !== shownMark) {
      shownMark = mark;
      $(".kd-datasets").innerHTML = html;
      $(".kd-none").hidden = Boolean(html);
      for (const time of element.querySelectorAll("time")) time.textContent = new Date(time.dateTime).toLocaleString();
    }
    if (!now || uploading) return;
    if (!now.over) {
      setBusy(true);
      showProgress(now.done, now.of, now.words);
    } else if (busy) {
      setBusy(false);
      say(now.words, now.problem);
      $(".kd-refused").innerHTML = now.skipped;
      element.querySelector(`[data-id="${now.dataset}"] details`)?.setAttribute("open", "");
    }
  }
  function confirmDelete(item) {
    const dialog = $("dialog");
    $(".kd-which").textContent = item.dataset.name;
    dialog.returnValue = "";
    dialog.onclose = async () => {
      if (dialog.returnValue !== "delete") return;
      const { problem } = await answer(server.act({ owner: props.value.owner, do: "delete", id: item.dataset.id })).catch(() => AWAY);
      say(problem ?? "Deleted.", Boolean(problem));
      await refresh().catch(() => {});
    };
    dialog.showModal();
  }
  element.addEventListener("click", (event) => {
    const what = event.target.closest("[data-do]")?.dataset.do, item = event.target.closest("li");
    const does = {
      add: addClass, begin, cancel, webcam: () => toggleWebcam(item), snap: () => takePicture(item), delete: () => confirmDelete(item),
      remove: () => { closeWebcam(item); item.remove(); }, use: () => use(item.dataset.id),
    };
    does[what]?.();
  });
  element.addEventListener("change", (event) => {
    if (event.target.dataset.file) showChosen(event.target);
    if (event.target.name !== "kd-way") return;
    for (const part of element.querySelectorAll("[data-way]")) part.hidden = part.dataset.way !== way();
    if (way() === "classes" && !$(".kd-classes").children.length) { addClass(); addClass(); }
  });
  (async () => {
    while (element.isConnected) {
      const visible = element.offsetParent && !document.hidden && "owner" in (props.value ?? {});
      if (visible) await refresh().catch(() => say("Reconnecting"));
      await sleep(!visible ? 200 : busy ? POLL_BUSY : POLL_LIST);
    }
  })();
};
