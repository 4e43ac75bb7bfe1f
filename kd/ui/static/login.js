// Where one can sign in: the browser's other pages follow, and Back does not show again what has been signed out of.
window.distillery.login = (() => {
  const others = new BroadcastChannel("distillery-login");
  const isIn = (label) => label.startsWith("Sign out");
  let shown = null; // the button's label here
  const forget = () => history.replaceState(history.state, "", window.distillery.address({}));

  others.onmessage = ({ data }) => {
    if (shown === null || data === shown) return;
    if (isIn(shown)) forget();
    window.location.reload();
  };
  window.addEventListener("pageshow", ({ persisted }) => { if (persisted) window.location.reload(); });

  function arrived(label) {
    shown = label;
    others.postMessage(label);
  }
  // gradio's own handler of the click goes half a second later, and takes along what the address has behind its "?", as
  // the value of one parameter.
  function leave(label) {
    if (isIn(label)) forget();
    history.replaceState(history.state, "", window.location.pathname + window.location.search.replaceAll("&", "%26"));
  }
  return { arrived, leave };
})();
