// Before anything is drawn: the theme that was chosen last time, and that scripts run here.
try {
  const theme = localStorage.getItem("nlora-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch (error) { /* storage is off for files in some browsers; the system's theme stands */ }
document.documentElement.classList.add("scripted");
