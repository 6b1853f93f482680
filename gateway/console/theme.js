/** The chosen colours, before the first paint, so that a dark page does not flash. No module: that would come later. */
try {
  const theme = localStorage.getItem("carrel.theme")
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme
} catch {
  // Storage is not allowed here: the system's own preference holds.
}
