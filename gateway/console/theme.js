// Before the first paint, so that a page that is to be dark does not flash: no module, which would come later.
try {
  const theme = localStorage.getItem("carrel.theme")
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme
} catch {
  // Storage is not allowed here: the system's own preference holds.
}
