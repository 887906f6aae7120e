// Small things that the document lacks. All text goes in as text; nothing here makes HTML of it.

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/** A fresh copy of what the template with this id holds. */
export const copyOf = (id) => byId(id).content.firstElementChild.cloneNode(true);

/** An element with a class and children (strings become text). */
export function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/** Put text on the clipboard. Where the page was not loaded over TLS or from this machine,
 *  browsers offer no clipboard, and a selection has to do. */
export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const carrier = element("textarea", "unseen");
  carrier.value = text;
  document.body.append(carrier);
  carrier.select();
  document.execCommand("copy");
  carrier.remove();
}

/** A button that copies what `text()` gives when it is pressed, and says so for a moment. */
export function copies(button, text) {
  const words = button.textContent;
  button.addEventListener("click", async () => {
    await copyText(text());
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = words), 1500);
  });
  return button;
}
