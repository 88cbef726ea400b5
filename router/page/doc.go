// Package page writes HTML pages that need nothing else, and the SVG pictures on them. What it writes is the same for the same
// figures, on any processor. Colours are the page's, by class.
package page
