// Package fakevast is a fake of Vast.ai on real loopback sockets: the control plane of console.vast.ai, the serverless
// engine of run.vast.ai, the proxy of openai.vast.ai, and instances, each of which is a fakecloud.Host at an address of
// its own. Everything can be made to go wrong as it does there: outbid, offline, running but dead, back at another
// port, a lagging or failing API.
//
// It is as strict as what is publicly known of the service, and where sources disagree a setting says which of them
// is right. Durations that a setting gives are those of the real service; Config.TimeScale shortens them all.
package fakevast
