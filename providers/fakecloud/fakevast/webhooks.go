package fakevast

// Fire tells all webhooks that want to know of an event, "client:outbid".
func (c *Cloud) Fire(_ string) {}

type priceIncrease struct{}
