import { stringify } from "yaml";
import type { KeyPair } from "./pki.ts";

export interface KubeconfigOptions {
  server: string;
  /** PEM. */
  certificateAuthority: string;
  userName: string;
  credentials: { clientPair: KeyPair } | { token: string };
  namespace?: string;
}

/** A kubeconfig with everything inline. */
export function kubeconfigText(options: KubeconfigOptions): string {
  const { server, certificateAuthority, userName, credentials, namespace } = options;
  const base64 = (text: string) => Buffer.from(text).toString("base64");
  const user =
    "token" in credentials
      ? { token: credentials.token }
      : {
          "client-certificate-data": base64(credentials.clientPair.certificate),
          "client-key-data": base64(credentials.clientPair.key),
        };
  return stringify(
    {
      apiVersion: "v1",
      kind: "Config",
      clusters: [{ name: "test", cluster: { server, "certificate-authority-data": base64(certificateAuthority) } }],
      users: [{ name: userName, user }],
      contexts: [
        {
          name: "test",
          context: { cluster: "test", user: userName, ...(namespace === undefined ? {} : { namespace }) },
        },
      ],
      "current-context": "test",
    },
    { lineWidth: 0 },
  );
}
