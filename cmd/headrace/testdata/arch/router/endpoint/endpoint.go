// Package endpoint breaks one rule.
package endpoint

import _ "headrace/router/outcome"
