import { messageOf } from "../lib/errors.ts";
import { type HTTPAnswer, httpGet, httpTarget, type HTTPTarget } from "./http-get.ts";
import type { ProbeOutcome, Prober } from "./port.ts";
import { probeTimeoutMs } from "./spec.ts";

/** What servers see who is asking; kubelet's own text, as access logs and rules of firewalls know it. */
export const probeUserAgent = "kube-probe/1.36";

/** 2xx and 3xx are good; a redirect that leads to another host is a warning. */
export const probeHTTP: Prober = async (probe, { container, podIP }, signal) => {
  const { httpGet: action } = probe;
  if (action === undefined) return { kind: "error", output: "missing HTTP handler" };
  let target: HTTPTarget;
  try {
    target = httpTarget(action, container, podIP, probeUserAgent);
  } catch (err) {
    return { kind: "error", output: messageOf(err) };
  }
  try {
    return judge(await httpGet(target, { timeoutMs: probeTimeoutMs(probe), signal }));
  } catch (err) {
    return { kind: "failure", output: messageOf(err) };
  }
};

function judge({ status, body, broken }: HTTPAnswer): ProbeOutcome {
  if (broken !== undefined) return { kind: "failure", output: broken };
  if (status >= 200 && status < 300) return { kind: "success", output: body };
  if (status >= 300 && status < 400) {
    return { kind: "warning", output: `Probe terminated redirects, Response body: ${body}` };
  }
  return { kind: "failure", output: `HTTP probe failed with statuscode: ${status}` };
}
