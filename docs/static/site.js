// One click opens all that a page has folded, code or tables; the next one closes it.
document.addEventListener("DOMContentLoaded", () => {
  const folded = [...document.querySelectorAll(".bd-article details")];
  if (folded.length === 0) return;
  const what = folded.some((one) => one.classList.contains("above-input")) ? "code" : "tables";
  const button = document.createElement("button");
  button.type = "button";
  button.className = "open-all";
  const label = () => {
    const open = folded.every((one) => one.open);
    button.textContent = open ? `Hide all ${what}` : `Show all ${what}`;
    button.setAttribute("aria-expanded", String(open));
  };
  button.addEventListener("click", () => {
    const open = !folded.every((one) => one.open);
    folded.forEach((one) => (one.open = open));
    label();
  });
  folded.forEach((one) => one.addEventListener("toggle", label));
  label();
  const links = document.querySelector(".page-links p");
  if (links) links.append(button);
  else document.querySelector(".bd-article h1").after(button);
});
