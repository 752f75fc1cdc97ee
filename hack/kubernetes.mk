# The targets that need Kubernetes: a development cluster, see hack/devcluster/README.md.

.PHONY: image
image: ## pack bin/images/estiba.tar and the demo models' image, without Docker
	@hack/image.sh

.PHONY: image-cuda
image-cuda: ## pack bin/images/estiba-cuda.tar, the image for GPUs: glibc and no CUDA toolkit
	@hack/image.sh cuda

.PHONY: test-kubernetes
test-kubernetes: ## end to end, in a real cluster built from source; needs root on Linux
	@hack/test-kubernetes.sh

.PHONY: demo-kubernetes
demo-kubernetes: ## chart, kubectl apply, a completion in a real cluster; needs root on Linux
	@hack/demo-kubernetes.sh

.PHONY: devcluster-up devcluster-down devcluster-status devcluster-logs
devcluster-up: ## start the development cluster (NODES=1)
	@hack/devcluster/devcluster up $(NODES)
devcluster-down: ## stop it and remove all that it left
	@hack/devcluster/devcluster down
devcluster-status: ## what runs in it, and how to reach it
	@hack/devcluster/devcluster status
devcluster-logs: ## follow one of its logs (COMPONENT=kube-apiserver), or list them
	@hack/devcluster/devcluster logs $(COMPONENT)
