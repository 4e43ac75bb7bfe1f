// Push the student of the run that is shown to the Hub: a form, and the push, found again after a reload.
(() => {
  const { answer, sleep } = window.distillery;
  const POLL = 700, POLL_AWAY = 3000;

  // For the form ``element``; ``begun`` is called when a push has begun, which may have begun an export. What is returned
  // shows the push of a closed run, ``{ run, owner }``, and of none hides the form.
  function pushing(element, server, begun) {
    const $ = (selector) => element.querySelector(selector);
    const button = (name) => $(`[data-do=${name}]`);
    const say = (words, isProblem = false) => {
      if ($(".kd-pushing").textContent !== words) $(".kd-pushing").textContent = words;
      $(".kd-pushing").classList.toggle("kd-problem", isProblem);
    };
    let follows = 0, value = {}, filled = ""; // how many runs have been followed; which run's values are in the fields

    function fill(state) {
      if (filled === value.run) return; // what the user has typed meanwhile stays
      filled = value.run;
      element.elements.repo.value = state.repo;
      element.elements.license.value = state.license ?? "";
      element.elements.public.checked = state.public ?? false;
    }
    function show(state) {
      const works = ["queued", "running"].includes(state.status);
      element.hidden = !state.status;
      if (!state.status) return false;
      fill(state);
      const hadFocus = element.contains(document.activeElement);
      $("fieldset").disabled = works || Boolean(state.missing);
      button("push").hidden = works || Boolean(state.missing);
      button("push").textContent = state.status === "none" ? "Push to the Hub" : "Push again";
      button("overwrite").hidden = works || !state.taken;
      button("cancel-push").hidden = !works || state.line === "Cancelling";
      $(".kd-missing").textContent = state.missing;
      $(".kd-bar").hidden = !works;
      $(".kd-bar > div").style.width = `${100 * state.share}%`;
      $(".kd-bar").setAttribute("aria-valuenow", Math.round(100 * state.share));
      say(state.line, ["failed", "died"].includes(state.status));
      const link = $(".kd-pushed a"), isAddress = /^https?:\/\//.test(state.url ?? "");
      $(".kd-pushed").hidden = !isAddress;
      if (isAddress) { link.href = state.url; link.textContent = state.url; }
      // Who works by keyboard stays here when what was pressed goes.
      if (hadFocus && (document.activeElement === document.body || document.activeElement?.hidden)) element.querySelector("button:not([hidden])")?.focus();
      return works;
    }
    async function follow(asked) {
      const nth = ++follows;
      value = asked;
      if (!asked.run) return show({});
      while (nth === follows && element.isConnected) {
        const state = await answer(server.push_state({ run: asked.run, owner: asked.owner })).catch(() => null);
        if (nth !== follows) return;
        if (state && !show(state)) return;
        if (!state) say("The server is away. Trying again…");
        await sleep(state ? POLL : POLL_AWAY);
      }
    }
    async function act(call) {
      const { problem } = await answer(call).catch(() => ({ problem: "The server gave no answer. Try again." }));
      if (problem) return say(problem, true);
      follow(value);
      begun();
    }
    const push = (overwrite) => {
      const { repo, license, public: isPublic } = element.elements;
      act(server.push_it({ ...value, repo: repo.value, license: license.value, public: isPublic.checked, overwrite }));
    };
    element.addEventListener("submit", (event) => { event.preventDefault(); if (!$("fieldset").disabled) push(false); });
    element.addEventListener("click", (event) => {
      const name = event.target.closest("button")?.dataset.do;
      if (name === "overwrite") push(true);
      else if (name === "cancel-push") act(server.cancel_push(value));
    });
    // Another name is another repository: the leave to write over the first says nothing of it.
    element.elements.repo.addEventListener("input", () => { button("overwrite").hidden = true; });
    return follow;
  }

  Object.assign(window.distillery, { pushing });
})();
