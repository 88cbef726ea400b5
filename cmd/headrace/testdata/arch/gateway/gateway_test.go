package gateway

import (
	_ "headrace/providers/fakecloud" // allowed in tests

	_ "headrace/providers/static"
)
