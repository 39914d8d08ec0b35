// Before the first paint: the theme chosen last time, and a mark that scripts run.
try {
  const theme = localStorage.getItem("nlora-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch (error) { /* some browsers have no storage for local files; the system's theme is used */ }
document.documentElement.classList.add("scripted");
