// Bokeh makes style elements, which the policy of the page allows by its nonce alone.
(() => {
  "use strict";
  const nonce = document.querySelector("style").nonce;
  const make = Document.prototype.createElement;
  Document.prototype.createElement = function (name, ...rest) {
    const element = make.call(this, name, ...rest);
    if (String(name).toLowerCase() === "style") element.nonce = nonce;
    return element;
  };
})();
