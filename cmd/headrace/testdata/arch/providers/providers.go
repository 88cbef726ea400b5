// Package providers breaks one rule.
package providers

import _ "headrace/router"
