/** Version of the kubelet and kube-proxy that we stand in for: reported in `nodeInfo.kubeletVersion` and by `--version`. */
export const kubeletVersion = "v1.36.2";

/** nodelet's own version. */
export const nodeletVersion = "0.1.0";

/** What `--version` prints, one text a stream. */
export interface VersionText {
  stdout: string;
  stderr: string;
}

/**
 * kubeadm accepts nothing but `Kubernetes vX.Y.Z` on standard output, so our own version goes to standard error.
 *
 * @param raw `--version=raw`: everything we know, as one line of JSON
 */
export function versionText(raw: boolean): VersionText {
  if (!raw) return { stdout: `Kubernetes ${kubeletVersion}\n`, stderr: `nodelet ${nodeletVersion}\n` };
  const [, major, minor] = /^v(\d+)\.(\d+)\./.exec(kubeletVersion) ?? [];
  const { version: nodeVersion, platform, arch } = process;
  const info = { major, minor, gitVersion: kubeletVersion, nodelet: nodeletVersion, nodeVersion, platform, arch };
  return { stdout: `${JSON.stringify(info)}\n`, stderr: "" };
}
