// The sidebar, which holds the panel, on a narrow page: Streamlit folds it, and has a button for each way.

export const isFolded = () => Boolean(document.querySelector("[data-testid=stExpandSidebarButton]"));
export const unfold = () => document.querySelector("[data-testid=stExpandSidebarButton]")?.click();
export const fold = () => document.querySelector("[data-testid=stSidebarCollapseButton] button")?.click();
