// A picture that is pasted anywhere on the Compare tab goes where an uploaded one would.
document.addEventListener("paste", (event) => {
  const input = document.querySelector("#pictures input[type=file]");
  const files = [...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith("image/"));
  if (!input || !files.length || !document.querySelector("#pictures").offsetParent) return;
  const list = new DataTransfer();
  files.forEach((file) => list.items.add(file));
  input.files = list.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});
