// The first paint needs no script: the viewer starts as soon as it is on the screen.
"use strict";

requestAnimationFrame(() => setTimeout(() => {
  for (const name of ["openseadragon.js", "page.js"]) {
    const script = document.createElement("script");
    script.src = name;
    script.async = false; // one after the other
    document.head.append(script);
  }
}));
