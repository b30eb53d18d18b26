import type { KubeletSettings } from "../config/load-kubelet.ts";
import { ConfigError } from "../config/problems.ts";
import type { EventRecorder } from "../kube/port.ts";
import type { Logger } from "../lib/log.ts";

/**
 * A node that runs alone, without kubeconfig: static pods are all that it has.
 *
 * @throws ConfigError for what only an API server could do
 */
export function checkStandalone({ flags, config }: KubeletSettings): void {
  const { enableServer, authentication, authorization, serverTLSBootstrap } = config;
  const without = "without --kubeconfig there is no API server";
  const lines = [
    ...(flags.bootstrapKubeconfig === "" ? [] : [`--bootstrap-kubeconfig needs --kubeconfig, which it is to write`]),
    ...(enableServer && authentication.webhook.enabled
      ? [`authentication.webhook.enabled must be false: ${without} to ask about tokens`]
      : []),
    ...(enableServer && authorization.mode === "Webhook"
      ? [`authorization.mode must be AlwaysAllow: ${without} to ask who may do what`]
      : []),
    ...(serverTLSBootstrap ? [`serverTLSBootstrap must be false: ${without} to sign the certificate`] : []),
  ];
  if (lines.length > 0) throw new ConfigError(lines);
}

/** Events go to the log: there is nowhere else that people could see them. */
export function logEvents(log: Logger): EventRecorder {
  return {
    event: ({ kind, namespace, name }, type, reason, message) => {
      const level = type === "Warning" ? "warn" : "info";
      log[level]({ kind, object: namespace === undefined ? name : `${namespace}/${name}`, reason, message }, "event");
    },
  };
}
