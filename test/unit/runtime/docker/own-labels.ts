/** What says of a container `app` that it is of pod `shop/web`, together with its name `k8s_app_web_shop_u_0`. */
export const ownLabels = {
  "io.kubernetes.docker.type": "container",
  "io.kubernetes.container.name": "app",
  "io.kubernetes.pod.name": "web",
  "io.kubernetes.pod.namespace": "shop",
  "io.kubernetes.pod.uid": "u",
  "io.nodelet.keys": "[]",
};
